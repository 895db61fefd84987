package lint

import (
	"fmt"
	"slices"
	"strings"
)

// layers says which of the project's folders a package may import, by the first element of its path. A folder may always
// import itself; what is not listed here does not exist yet, and is added together with its place.
func layers() map[string][]string {
	libraries := []string{"consumers", "producers", "projections", "schemas", "domain", "internal"}
	return map[string][]string{
		"domain":      {},
		"schemas":     {"domain", "internal"},
		"internal":    {"schemas", "domain"},
		"consumers":   {"schemas", "domain", "internal"},
		"producers":   {"schemas", "domain", "internal"},
		"projections": {"schemas", "domain", "internal"},

		// At the top, and imported by nobody.
		"cmd":      libraries,
		"deploy":   libraries,
		"examples": libraries,
		"test":     libraries,
		".":        libraries,
	}
}

// Imports checks that the import graph runs one way: cmd, then consumers, producers and projections side by side, then
// schemas, then domain. Tests keep to it like the code: one that needs two siblings belongs above them.
func Imports(t *Tree) []Finding {
	allowed := layers()
	var found []Finding
	for _, f := range t.goFiles() {
		from := layer(f.Dir())
		below, known := allowed[from]
		if !known {
			found = append(found, Finding{Path: f.Path, Line: 1, Text: fmt.Sprintf("expected a folder of the project's layout, but %s is none; give it a place in internal/lint/imports.go", from)})
			continue
		}
		for _, spec := range f.Syntax.Imports {
			if spec.Name != nil && spec.Name.Name == "." {
				found = append(found, t.find(f, spec.Pos(), "a dot import hides where a name comes from; import %s by name", spec.Path.Value))
			}
			importPath := unquote(spec.Path)
			if importPath != Module && !strings.HasPrefix(importPath, Module+"/") {
				continue
			}
			to := layer(strings.TrimPrefix(strings.TrimPrefix(importPath, Module), "/"))
			if to == from || slices.Contains(below, to) {
				continue
			}
			may := "nothing of the project"
			if len(below) > 0 {
				may = strings.Join(below, ", ")
			}
			found = append(found, t.find(f, spec.Pos(), "%s must not import %s: beside itself it may import %s", from, to, may))
		}
	}
	return found
}

// layer is the first element of a folder's path below the root.
func layer(dir string) string {
	if dir == "" {
		return "."
	}
	first, _, _ := strings.Cut(dir, "/")
	return first
}
