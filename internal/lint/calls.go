package lint

import (
	"go/ast"
	"strings"
)

// Calls checks what may be called only for a reason that is written beside it (see the package comment), or not at all:
// time.Sleep, contexts made of nothing, panic, os.Exit and log.Fatal, print and println, and functions named
// init, which run before anybody has asked.
func Calls(t *Tree) []Finding {
	var found []Finding
	for _, f := range t.goFiles() {
		if f.Generated {
			continue
		}
		top := layer(f.Dir())
		library := top != "cmd" && top != "internal" && top != "examples" && !f.Test
		ast.PreorderStack(f.Syntax, nil, func(n ast.Node, stack []ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Recv == nil && n.Name.Name == "init" {
					found = append(found, t.find(f, n.Pos(), "no init functions: make the value where the program is put together, and pass it down"))
				}
			case *ast.CallExpr:
				ident, ok := n.Fun.(*ast.Ident)
				if !ok || ident.Obj != nil {
					break
				}
				switch ident.Name {
				case "panic":
					if !f.Test && !t.justified(f, n, stack, "invariant") {
						found = append(found, t.find(f, n.Pos(), "return an error instead of the panic; if only a mistake in this program can lead here, say which on the line before: // invariant: why"))
					}
				case "print", "println":
					found = append(found, t.find(f, n.Pos(), "the builtin %s is for the runtime: write to an io.Writer or to the logger", ident.Name))
				}
			case *ast.SelectorExpr:
				importPath, name := f.qualified(n)
				switch importPath + "." + name {
				case "time.Sleep":
					if !f.inBubble(stack) && !t.justified(f, n, stack, "sleep") {
						found = append(found, t.find(f, n.Pos(), "wait for a signal, a timer with a context, or virtual time (synctest) instead of time.Sleep; if there is truly none, say so on the line before: // sleep: why"))
					}
				case "context.Background", "context." + unsettled:
					if library && !t.justified(f, n, stack, "detached") {
						found = append(found, t.find(f, n.Pos(), "take the caller's context instead of context.%s; if the work must outlive it, say so on the line before: // detached: why", name))
					}
				case "os.Exit", "log.Fatal", "log.Fatalf", "log.Fatalln", "log.Panic", "log.Panicf", "log.Panicln":
					if top != "cmd" && top != "examples" && !f.Test {
						found = append(found, t.find(f, n.Pos(), "only a command ends the process: return an error instead of %s.%s", importPath, name))
					}
				}
			}
			return true
		})
	}
	return found
}

// justified says whether a comment that begins a line with the given word, a colon and a reason ends on the line before
// the node, or before the statement or declaration around it.
func (t *Tree) justified(f *File, n ast.Node, stack []ast.Node, word string) bool {
	if gives(f.lines[t.line(n.Pos())-1], word) {
		return true
	}
	for i := len(stack) - 1; i >= 0; i-- {
		switch around := stack[i].(type) {
		case *ast.BlockStmt, *ast.FuncDecl, *ast.FuncLit:
			return false
		case ast.Stmt, ast.Spec, ast.Decl:
			return gives(f.lines[t.line(around.Pos())-1], word)
		}
	}
	return false
}

// unsettled is the name of the context that says it will be thought about later; in pieces, for the rule on words.
const unsettled = "TO" + "DO"

func gives(comment, word string) bool {
	for line := range strings.Lines(comment) {
		if reason, ok := strings.CutPrefix(line, word+":"); ok && len(strings.TrimSpace(reason)) > 0 {
			return true
		}
	}
	return false
}

// inBubble says whether the node stands in a function that synctest runs, where sleeping is how virtual time passes.
func (f *File) inBubble(stack []ast.Node) bool {
	for _, n := range stack {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			continue
		}
		if sel, ok := call.Fun.(*ast.SelectorExpr); ok {
			if importPath, _ := f.qualified(sel); importPath == "testing/synctest" {
				return true
			}
		}
	}
	return false
}
