package lint

import (
	"go/ast"
	"slices"
	"strings"
)

// impurePackages are the packages of the standard library, each with what lies below it, by which the world would get
// into the state machine, or out of it.
func impurePackages() []string {
	return []string{
		"bufio", "crypto/rand", "database/sql", "embed", "expvar", "flag", "io/fs", "io/ioutil", "log", "net", "os",
		"path/filepath", "plugin", "runtime", "sync", "syscall", "testing", "unsafe",
	}
}

// pureModules are the modules outside of the standard library that the state machine may use: they compute.
func pureModules() []string {
	return []string{
		"github.com/go-json-experiment/json",
		"github.com/google/uuid",
		"github.com/twmb/franz-go/pkg/kbin",
	}
}

// impureNames are names of otherwise harmless packages that read the clock, throw dice or print. A replay tomorrow would
// give another answer.
func impureNames() map[string][]string {
	return map[string][]string{
		"time": {"Now", "Since", "Until", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick", "Sleep", "Local"},
		"fmt":  {"Print", "Printf", "Println", "Scan", "Scanf", "Scanln"},
		// NewSHA1, NewMD5 and NewHash make the same id of the same name, and stay.
		"github.com/google/uuid": {"New", "NewString", "NewRandom", "NewRandomFromReader", "NewUUID", "NewV6", "NewV7", "NewV7FromReader", "NewDCESecurity", "NewDCEGroup", "NewDCEPerson"},
		"context":                {"Background", unsettled, "WithTimeout", "WithTimeoutCause", "WithDeadline", "WithDeadlineCause"},
	}
}

// seededRand are the names of math/rand and math/rand/v2 that take their chance from a seed; all others share a hidden one.
func seededRand() []string {
	return []string{"New", "NewSource", "NewPCG", "NewChaCha8", "NewZipf", "Rand", "Source", "Source64", "PCG", "ChaCha8", "Zipf"}
}

// Purity checks that domain stays a function of its arguments: no I/O, no clock, no dice, no logger, no goroutines. Its
// tests may read files and measure time.
func Purity(t *Tree) []Finding {
	names := impureNames()
	var found []Finding
	for _, f := range t.goFiles() {
		if layer(f.Dir()) != "domain" || f.Test {
			continue
		}
		for _, spec := range f.Syntax.Imports {
			importPath := unquote(spec.Path)
			switch {
			case importPath == Module || strings.HasPrefix(importPath, Module+"/"):
			case !strings.Contains(strings.Split(importPath, "/")[0], "."):
				if within(importPath, impurePackages()) {
					found = append(found, t.find(f, spec.Pos(), "domain must not import %s: the state machine does no I/O and shares nothing; pass in what it needs", importPath))
				}
			case !within(importPath, pureModules()):
				found = append(found, t.find(f, spec.Pos(), "domain must not import %s; if it only computes, add it to pureModules in internal/lint/purity.go", importPath))
			}
		}
		ast.Inspect(f.Syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				found = append(found, t.find(f, n.Pos(), "domain must not start goroutines: their order would not be the same in a replay"))
			case *ast.SelectorExpr:
				importPath, name := f.qualified(n)
				switch {
				case slices.Contains(names[importPath], name):
					found = append(found, t.find(f, n.Pos(), "domain must not use %s.%s: time, ids and chance come in from outside", importPath, name))
				case (importPath == "math/rand" || importPath == "math/rand/v2") && !slices.Contains(seededRand(), name):
					found = append(found, t.find(f, n.Pos(), "domain must not use %s.%s, which has a hidden seed: use a generator made from the seed in the event", importPath, name))
				}
			}
			return true
		})
	}
	return found
}

// within says whether a package is one of those listed, or lies below one.
func within(importPath string, list []string) bool {
	return slices.ContainsFunc(list, func(p string) bool { return importPath == p || strings.HasPrefix(importPath, p+"/") })
}

// qualified resolves a selector on an imported package to the import path and the name in it; both are empty for any other
// selector, such as that of a field of a local variable which has the name of a package.
func (f *File) qualified(sel *ast.SelectorExpr) (importPath, name string) {
	ident, ok := sel.X.(*ast.Ident)
	if !ok || ident.Obj != nil {
		return "", ""
	}
	importPath, ok = f.imports[ident.Name]
	if !ok {
		return "", ""
	}
	return importPath, sel.Sel.Name
}
