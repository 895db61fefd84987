package schemas

import (
	"embed"
	"io/fs"
	"strings"
)

// documents are the schemas as files, for people and for other languages.
//
//go:embed json asyncapi.yaml
var documents embed.FS

// Documents returns the JSON Schemas (2020-12) of all messages as json/<topic>/<type>.json, what they have in common as
// json/parts.json, and the AsyncAPI 3.0 description of the topics as asyncapi.yaml.
func Documents() fs.FS { return documents }

// AsyncAPI returns the description of the topics.
func AsyncAPI() []byte {
	b, err := documents.ReadFile("asyncapi.yaml")
	if err != nil {
		// invariant: the file is embedded.
		panic(err)
	}
	return b
}

// JSONSchemas returns the JSON Schemas by name: <topic>/<type>.json, and parts.json. They refer to each other by these
// names, relatively.
func JSONSchemas() map[string][]byte {
	all := make(map[string][]byte)
	err := fs.WalkDir(documents, "json", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		all[strings.TrimPrefix(name, "json/")], err = documents.ReadFile(name)
		return err
	})
	if err != nil {
		// invariant: the files are embedded.
		panic(err)
	}
	return all
}

// Schema returns the JSON Schema of a message's data.
func (m *Message) Schema() ([]byte, error) {
	return documents.ReadFile("json/" + m.Topic + "/" + m.Type + ".json")
}
