package schemas

import (
	"encoding/json"
	"io/fs"
	"regexp"
	"testing"
	"unicode"
	"unicode/utf8"
)

// Patterns are for validators of every make. JSON Schema promises less of regular expressions than ECMAScript has: what Python's
// validator cannot compile, it does not refuse but breaks off with.
func TestPatternsAreForEveryValidator(t *testing.T) {
	var look func(name string, v any)
	look = func(name string, v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				look(name, e)
			}
		case map[string]any:
			if p, ok := v["pattern"].(string); ok && regexp.MustCompile(`\\[pPuxdDwWsSbBA-Z]`).MatchString(p) {
				t.Errorf("%s: expected a pattern without classes and escapes that not all engines know, but got %q", name, p)
			}
			for _, e := range v {
				look(name, e)
			}
		}
	}
	err := fs.WalkDir(Documents(), "json", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var v any
		b, err := fs.ReadFile(Documents(), name)
		if err == nil {
			err = json.Unmarshal(b, &v)
		}
		look(name, v)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The schemas spell out the characters that clean refuses.
func TestPatternsRefuseWhatCleanRefuses(t *testing.T) {
	var parts struct {
		Defs map[string]struct {
			Pattern    string                              `json:"pattern"`
			Properties map[string]struct{ Pattern string } `json:"properties"`
		} `json:"$defs"`
	}
	b, err := fs.ReadFile(Documents(), "json/parts.json")
	if err == nil {
		err = json.Unmarshal(b, &parts)
	}
	if err != nil {
		t.Fatal(err)
	}
	agree := func(name, pattern string, want func(string) bool) {
		re := regexp.MustCompile(pattern)
		for r := rune(0); r <= unicode.MaxRune; r++ {
			if s := string(r); utf8.ValidRune(r) && re.MatchString(s) != want(s) {
				t.Errorf("%s: expected the pattern to say %t of %U, as the parser does; is it of another version of Unicode?", name, want(s), r)
			}
		}
	}
	for _, name := range []string{"text", "id", "organization"} {
		agree(name, parts.Defs[name].Pattern, clean)
	}
	agree("by.reason", parts.Defs["by"].Properties["reason"].Pattern, func(s string) bool { return clean(lineEnds.Replace(s)) })
}
