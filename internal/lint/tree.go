package lint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Module is the import path that every package of the project begins with.
const Module = "github.com/opstream/opstream"

// A Finding is one place where one rule is broken.
type Finding struct {
	Path string // relative to the root, with slashes
	Line int    // from 1; 0 when the file or folder as a whole is meant
	Text string // what was expected, and what to do
}

func (f Finding) String() string {
	return fmt.Sprintf("%s:%d: %s", f.Path, f.Line, f.Text)
}

// A File is one file of a tree. The fields below Source are set for Go files that are part of the build of some package,
// so not for what lies below testdata.
type File struct {
	Path   string
	Source []byte

	Syntax    *ast.File
	Test      bool              // a _test.go file, or a package of test helpers (projectiontest)
	Generated bool              // carries the standard header of generated code
	imports   map[string]string // name in this file -> import path
	lines     map[int]string    // last line of a comment group -> its text
}

// Dir is the folder of the file, "." for the root.
func (f *File) Dir() string { return path.Dir(f.Path) }

// A Tree is the files of a project, in the order of their paths.
type Tree struct {
	Files  []*File
	Broken []Finding // Go files that do not parse
	fset   *token.FileSet
}

// New makes a tree of files that are given as path and content.
func New(files map[string]string) *Tree {
	t := &Tree{fset: token.NewFileSet()}
	for name, source := range files {
		t.add(name, []byte(source))
	}
	t.sort()
	return t
}

// Load reads the files below root, without those that git ignores. Without git nothing counts as ignored.
func Load(ctx context.Context, root string) (*Tree, error) {
	ignored := ignoredByGit(ctx, root)
	t := &Tree{fset: token.NewFileSet()}
	// The folders are walked, and not listed by git, so that the go command sees what the tests depend on and does not
	// answer from its cache when a file is added.
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) && name != root {
				return nil // gone between the listing and the look
			}
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if ignored[rel] {
			if entry.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if entry.IsDir() {
			if base := entry.Name(); base == ".git" || base == "node_modules" {
				return filepath.SkipDir
			}
			return nil
		}
		if !entry.Type().IsRegular() || !(isText(rel) || strings.HasSuffix(rel, ".go")) {
			return nil
		}
		source, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		t.add(rel, source)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the source below %s: %w", root, err)
	}
	t.sort()
	return t, nil
}

// ignoredByGit returns the files and whole folders that the repository's own rules leave out.
func ignoredByGit(ctx context.Context, root string) map[string]bool {
	git := exec.CommandContext(ctx, "git", "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory")
	git.Dir = root
	out, err := git.Output()
	if err != nil {
		return nil
	}
	ignored := map[string]bool{}
	for name := range strings.SplitSeq(string(out), "\x00") {
		if name = strings.TrimSuffix(name, "/"); name != "" {
			ignored[name] = true
		}
	}
	return ignored
}

func (t *Tree) sort() {
	slices.SortFunc(t.Files, func(a, b *File) int { return strings.Compare(a.Path, b.Path) })
}

func (t *Tree) add(name string, source []byte) {
	f := &File{Path: name, Source: source}
	t.Files = append(t.Files, f)
	if !strings.HasSuffix(name, ".go") || isTestdata(name) {
		return
	}
	syntax, err := parser.ParseFile(t.fset, name, source, parser.ParseComments)
	if err != nil {
		broken := Finding{Path: name, Text: err.Error()}
		var list scanner.ErrorList
		if errors.As(err, &list) && len(list) > 0 {
			broken.Line, broken.Text = list[0].Pos.Line, list[0].Msg
		}
		t.Broken = append(t.Broken, broken)
		return
	}
	f.Syntax = syntax
	f.Test = strings.HasSuffix(name, "_test.go") || strings.HasSuffix(path.Base(f.Dir()), "test")
	f.Generated = ast.IsGenerated(syntax)
	f.imports = map[string]string{}
	for _, spec := range syntax.Imports {
		importPath := unquote(spec.Path)
		name := defaultName(importPath)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		f.imports[name] = importPath
	}
	f.lines = map[int]string{}
	for _, group := range syntax.Comments {
		f.lines[t.line(group.End())] = group.Text()
	}
}

// goFiles returns the files that belong to packages and parse.
func (t *Tree) goFiles() []*File {
	var files []*File
	for _, f := range t.Files {
		if f.Syntax != nil {
			files = append(files, f)
		}
	}
	return files
}

func (t *Tree) line(pos token.Pos) int { return t.fset.Position(pos).Line }

func (t *Tree) find(f *File, pos token.Pos, format string, args ...any) Finding {
	return Finding{Path: f.Path, Line: t.line(pos), Text: fmt.Sprintf(format, args...)}
}

func isTestdata(name string) bool {
	return strings.HasPrefix(name, "testdata/") || strings.Contains(name, "/testdata/")
}

func unquote(lit *ast.BasicLit) string { return strings.Trim(lit.Value, "`\"") }

// defaultName is the name under which a file sees an import that it does not name: the last element of the path, or the
// one before it when the last is a major version.
func defaultName(importPath string) string {
	base := path.Base(importPath)
	if len(base) > 1 && base[0] == 'v' && strings.Trim(base[1:], "0123456789") == "" {
		if dir := path.Dir(importPath); dir != "." {
			base = path.Base(dir)
		}
	}
	return base
}

// isText says by name whether a file is one that people read and write.
func isText(name string) bool {
	switch path.Ext(name) {
	case ".go", ".md", ".yaml", ".yml", ".sh", ".json", ".html", ".tmpl", ".css", ".js", ".sql", ".toml", ".mod", ".txt", ".tpl", ".xml", ".svg", ".http", ".conf", ".env", ".service", ".properties":
		return !strings.HasSuffix(name, ".min.js")
	case "", ".gitignore", ".dockerignore":
		return path.Base(name) != "LICENSE"
	}
	return false
}

// isBinary guards against a program that has no extension.
func isBinary(source []byte) bool {
	return bytes.IndexByte(source[:min(len(source), 8000)], 0) >= 0
}
