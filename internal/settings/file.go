package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"go.yaml.in/yaml/v3"
)

// fileMax is the size of a file, in bytes, above which it is refused: it is a page of names and values.
const fileMax = 256 << 10

// entry is a value in the file.
type entry struct {
	values []string
	line   int
}

// readConfig reads a file whole, if it is not too large.
func readConfig(path string) (_ []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("expected to read the configuration, but: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data, err := io.ReadAll(io.LimitReader(f, fileMax+1))
	if err != nil {
		return nil, fmt.Errorf("expected to read the configuration in %s, but: %w", path, err)
	}
	return data, nil
}

// parse reads a file: a YAML mapping of names to values, one level deep. It returns what could be read, and everything that is wrong.
// name is the file's, for messages. Anchors, aliases, tags and further documents have no use here and are refused, as is a name that
// stands there twice: which one counts is for people to say.
func (t Table) parse(name string, data []byte) (map[string]entry, []error) {
	var faults []error
	fault := func(line int, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s:%d: %w", name, line, fmt.Errorf(format, args...)))
	}
	if len(data) > fileMax {
		return nil, []error{fmt.Errorf("%s: expected a configuration of at most %d bytes, but it is larger; is it the right file?", name, fileMax)}
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document yaml.Node
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF):
		return nil, nil // nothing but comments
	case err != nil:
		return nil, []error{fmt.Errorf("%s: expected YAML, but: %w", name, err)}
	}
	if err := decoder.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, []error{fmt.Errorf("%s: expected one document, but more follows after ---; put all options into one", name)}
	}
	if len(document.Content) != 1 {
		return nil, []error{fmt.Errorf("%s: expected a document, but there is none", name)}
	}
	root := document.Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		return nil, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, []error{fmt.Errorf("%s:%d: expected lines of the form name: value, but got %s", name, root.Line, kindOf(root))}
	}
	if root.Anchor != "" {
		fault(root.Line, "expected no anchor, but there is one")
	}
	names := make([]string, len(t))
	for i := range t {
		names[i] = t[i].Name
	}
	out := map[string]entry{}
	seen := map[string]int{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			fault(key.Line, "expected the name of an option, but got %s", kindOf(key))
			continue
		}
		o := t.Find(key.Value)
		if o == nil {
			fault(key.Line, "%w", unknown("option", key.Value, names))
			continue
		}
		if first, twice := seen[o.Name]; twice {
			fault(key.Line, "expected %s once, but it stands in line %d already; remove one of them", o.Name, first)
			continue
		}
		seen[o.Name] = key.Line
		values, err := o.valuesOf(value)
		if err == nil {
			err = o.check(values)
		}
		if err != nil {
			fault(value.Line, "%s: %w", o.Name, err)
			continue
		}
		out[o.Name] = entry{values, key.Line}
	}
	return out, faults
}

// unknown is the error for a name that is not known.
func unknown(what, name string, names []string) error {
	if near := nearest(name, names); near != "" {
		return fmt.Errorf("expected a known %s, but got %q; did you mean %s?", what, clip(name), near)
	}
	return fmt.Errorf("expected a known %s, but got %q, which is near none", what, clip(name))
}

// valuesOf reads a node: a scalar, or for a list a sequence of them.
func (o *Option) valuesOf(n *yaml.Node) ([]string, error) {
	if o.Kind == List && n.Kind == yaml.SequenceNode {
		if n.Anchor != "" {
			return nil, errors.New("expected no anchor, but there is one")
		}
		out := make([]string, 0, len(n.Content))
		for _, item := range n.Content {
			text, err := scalar(item)
			if err != nil {
				return nil, err
			}
			out = append(out, text)
		}
		return out, nil
	}
	text, err := scalar(n)
	if err != nil {
		return nil, err
	}
	if o.Kind == List {
		return split(text), nil
	}
	return []string{text}, nil
}

func scalar(n *yaml.Node) (string, error) {
	switch {
	case n.Kind != yaml.ScalarNode:
		return "", fmt.Errorf("expected a value, but got %s", kindOf(n))
	case n.Anchor != "":
		return "", errors.New("expected no anchor, but there is one")
	case n.Style&yaml.TaggedStyle != 0:
		return "", fmt.Errorf("expected a value without a tag, but it has %q", clip(n.Tag))
	case n.ShortTag() == "!!null":
		return "", errors.New(`expected a value, but there is none; leave the line out to get the default, or write "" for an empty text`)
	}
	return n.Value, nil
}

func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	case yaml.ScalarNode:
		return "one value"
	case yaml.DocumentNode:
		return "a document"
	default:
		return "nothing"
	}
}
