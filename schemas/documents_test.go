package schemas

import (
	"bytes"
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

// closed loads schemas from the embedded files and from nowhere else.
type closed struct{ t testing.TB }

const schemaRoot = "embedded:///"

func (c closed) Load(url string) (any, error) {
	name, ok := strings.CutPrefix(url, schemaRoot)
	if !ok {
		c.t.Errorf("expected references to embedded files only, but got %s", url)
		return nil, fs.ErrNotExist
	}
	b, err := fs.ReadFile(Documents(), name)
	if err != nil {
		return nil, err
	}
	return jsonschema.UnmarshalJSON(bytes.NewReader(b))
}

func compiler(t testing.TB) *jsonschema.Compiler {
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	c.UseLoader(closed{t})
	return c
}

func TestExamplesMatchTheirSchemas(t *testing.T) {
	c := compiler(t)
	for _, x := range examples(t) {
		schema, err := c.Compile(schemaRoot + "json/" + x.topic + "/" + x.typ + ".json")
		if err != nil {
			t.Errorf("%s: %v", x.name, err)
			continue
		}
		value, err := jsonschema.UnmarshalJSON(bytes.NewReader(x.rec.Value))
		if err != nil {
			t.Errorf("%s: %v", x.name, err)
			continue
		}
		if err := schema.Validate(value); err != nil {
			t.Errorf("%s: %v\n%s", x.name, err, x.rec.Value)
		}
	}
}

// The schema of requests refuses what the parser refuses, as far as a schema can say it.
func TestSchemaRefusesBadRequests(t *testing.T) {
	schema, err := compiler(t).Compile(schemaRoot + "json/requests/opstream.operation.requested.v1.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, members := range []string{
		`"unknown":1`, `"priority":10`, `"priority":1.5`, `"timeLimit":"PT5M"`, `"postponeUntil":"tomorrow"`, `"retry":{"jitter":2}`, `"retry":{"x":1}`,
		`"onUpstreamFailure":"stop"`, `"name":"a\u202eb"`, `"name":"a\u0000"`, `"depth":-1`, `"regarding":{"id":1}`,
	} {
		in := `{"id":"a","organization":"o","type":"import",` + members + `}`
		value, err := jsonschema.UnmarshalJSON(strings.NewReader(in))
		if err != nil {
			t.Fatal(err)
		}
		if schema.Validate(value) == nil {
			t.Errorf("%s: expected the schema to refuse it", in)
		}
		if _, err := ParseRequest([]byte(in), ""); err == nil {
			t.Errorf("%s: expected the parser to refuse it", in)
		}
	}
}

func TestSchemasMatchTheRegistry(t *testing.T) {
	files := map[string]bool{}
	for _, m := range Registry() {
		files[m.Topic+"/"+m.Type+".json"] = true
		b, err := m.Schema()
		if err != nil {
			t.Error(err)
			continue
		}
		parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
		if err != nil {
			t.Errorf("%s: %v", m.Type, err)
			continue
		}
		schema := parsed.(map[string]any)
		properties, _ := schema["properties"].(map[string]any)
		var have, want, must, needed []string
		for name := range properties {
			have = append(have, name)
		}
		for _, f := range m.Fields {
			name, required := strings.CutSuffix(f, "!")
			want = append(want, name)
			if required {
				needed = append(needed, name)
			}
		}
		required, _ := schema["required"].([]any)
		for _, name := range required {
			must = append(must, name.(string))
		}
		for _, list := range [][]string{have, want, must, needed} {
			slices.Sort(list)
		}
		if !slices.Equal(have, want) {
			t.Errorf("%s on %s: expected the schema to have %v, but it has %v", m.Type, m.Topic, want, have)
		}
		if !slices.Equal(must, needed) {
			t.Errorf("%s on %s: expected the schema to require %v, but it requires %v", m.Type, m.Topic, needed, must)
		}
		// What callers write is closed, because we refuse what we do not know; all else is open to new members.
		_, isClosed := schema["additionalProperties"]
		if outside := m.Topic == TopicRequests; outside != isClosed {
			t.Errorf("%s on %s: expected closed=%v", m.Type, m.Topic, outside)
		}
	}
	err := fs.WalkDir(Documents(), "json", func(name string, d fs.DirEntry, err error) error {
		if short := strings.TrimPrefix(name, "json/"); err == nil && !d.IsDir() && short != "parts.json" && !files[short] {
			t.Errorf("expected a message in the registry for the schema %s, but there is none", name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAsyncAPI(t *testing.T) {
	b, err := fs.ReadFile(Documents(), "asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := yaml.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	if doc["asyncapi"] != "3.0.0" {
		t.Errorf("expected AsyncAPI 3.0.0, but got %v", doc["asyncapi"])
	}
	at := func(pointer string) any {
		var v any = doc
		for _, step := range strings.Split(strings.TrimPrefix(pointer, "#/"), "/") {
			m, _ := v.(map[string]any)
			v = m[step]
		}
		return v
	}
	refs := 0
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				refs++
				if strings.HasPrefix(ref, "#/") {
					if at(ref) == nil {
						t.Errorf("expected %s to be in the document", ref)
					}
				} else if _, err := fs.Stat(Documents(), path.Clean(ref)); err != nil {
					t.Errorf("expected %s to be a file: %v", ref, err)
				}
			}
			for _, inner := range v {
				walk(inner)
			}
		case []any:
			for _, inner := range v {
				walk(inner)
			}
		}
	}
	walk(doc)
	if refs < 2*len(Registry()) {
		t.Errorf("expected references for every message, but found %d", refs)
	}

	channels, _ := doc["channels"].(map[string]any)
	described := map[string]bool{} // topic/type
	for _, spec := range (Topics{}).Specs(DefaultPartitions, DefaultInboxPartitions) {
		channel, ok := channels[spec.Short].(map[string]any)
		if !ok || channel["address"] != "{prefix}"+spec.Short {
			t.Errorf("expected a channel for the topic %s, but got %v", spec.Short, channel)
			continue
		}
		messages, _ := channel["messages"].(map[string]any)
		for name := range messages {
			message, _ := at("#/components/messages/" + name).(map[string]any)
			typ, _ := message["name"].(string)
			described[spec.Short+"/"+typ] = true
			payload, _ := message["payload"].(map[string]any)
			schema, _ := payload["schema"].(map[string]any)
			if want := "./json/" + spec.Short + "/" + typ + ".json"; spec.Short != TopicDeadLetter && schema["$ref"] != want {
				t.Errorf("%s: expected the schema %s, but got %v", name, want, schema["$ref"])
			}
		}
	}
	if len(channels) != len(shortNames) {
		t.Errorf("expected %d channels, but got %d", len(shortNames), len(channels))
	}
	for _, m := range Registry() {
		if !described[m.Topic+"/"+m.Type] {
			t.Errorf("expected %s on %s to be described, but it is not", m.Type, m.Topic)
		}
	}
	if len(described) != len(Registry())+1 { // and the dead letter
		t.Errorf("expected %d messages, but got %d", len(Registry())+1, len(described))
	}
}

func TestJSONSchemasHasEveryMessage(t *testing.T) {
	all := JSONSchemas()
	if len(all) != len(Registry())+1 || len(all["parts.json"]) == 0 || len(AsyncAPI()) == 0 {
		t.Errorf("expected %d schemas, but got %d", len(Registry())+1, len(all))
	}
	for _, m := range Registry() {
		if len(all[m.Topic+"/"+m.Type+".json"]) == 0 {
			t.Errorf("expected a schema of %s on %s", m.Type, m.Topic)
		}
	}
}
