package lint

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Comments checks that every package says what it is for, in one place: "Package name …" in a library, "Command …" in a
// command. Folders with nothing but tests need not.
func Comments(t *Tree) []Finding {
	type pkg struct {
		name      string
		first     *File
		commented []*File
	}
	packages := map[string]*pkg{}
	for _, f := range t.goFiles() {
		if strings.HasSuffix(f.Path, "_test.go") {
			continue
		}
		p := packages[f.Dir()]
		if p == nil {
			p = &pkg{name: f.Syntax.Name.Name, first: f}
			packages[f.Dir()] = p
		}
		if packageComment(f) != "" {
			p.commented = append(p.commented, f)
		}
	}

	var found []Finding
	for _, dir := range slices.Sorted(maps.Keys(packages)) {
		p := packages[dir]
		begin := "Package " + p.name + " "
		if p.name == "main" {
			begin = "Command "
		}
		if len(p.commented) == 0 {
			found = append(found, t.find(p.first, p.first.Syntax.Package, "expected a package comment that begins with %q, with no blank line before the package clause, but package %s has none", begin, p.name))
		}
		for i, f := range p.commented {
			if text := packageComment(f); !strings.HasPrefix(text, begin) {
				found = append(found, t.find(f, f.Syntax.Doc.Pos(), "expected the package comment to begin with %q, but it begins with %q", begin, firstWords(text)))
			}
			if i > 0 && !f.Generated {
				found = append(found, t.find(f, f.Syntax.Doc.Pos(), "package %s has a comment in %s already; keep one", p.name, p.commented[0].Path))
			}
		}
	}
	return found
}

// packageComment is the text of the comment that touches the package clause, empty when there is none.
func packageComment(f *File) string { return strings.TrimSpace(f.Syntax.Doc.Text()) }

func firstWords(text string) string {
	words := strings.Fields(text)
	return strings.Join(words[:min(len(words), 3)], " ")
}

// Names checks that no package has a name which says nothing about what is in it. Such a package grows, for want of a
// meaning to break.
func Names(t *Tree) []Finding {
	drawers := []string{"util", "utils", "helper", "helpers", "common", "base", "misc"}
	var found []Finding
	seen := map[string]bool{}
	for _, f := range t.goFiles() {
		dir := f.Dir()
		if seen[dir] {
			continue
		}
		seen[dir] = true
		for _, name := range append(strings.Split(dir, "/"), strings.TrimSuffix(f.Syntax.Name.Name, "_test")) {
			if slices.Contains(drawers, name) {
				found = append(found, t.find(f, f.Syntax.Package, "%s", fmt.Sprintf("%q says nothing about what is in the package; name it for what it is, or put its functions where they are used", name)))
				break
			}
		}
	}
	return found
}
