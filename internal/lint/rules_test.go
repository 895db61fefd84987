package lint

import (
	"fmt"
	"strings"
	"testing"
)

// TestRules shows each rule small trees. What a rule must find is marked in the tree itself, by a line that ends in
// "// want: part of the text"; lines without the mark must pass.
func TestRules(t *testing.T) {
	tests := []struct {
		rule, name string
		files      map[string]string
	}{
		{"syntax", "a file that does not parse", map[string]string{
			"domain/a.go": "package domain\nfunc { // want: expected 'IDENT'\n",
			"domain/b.go": "package domain\n",
		}},

		{"imports", "each layer imports what is below it", map[string]string{
			"cmd/opstream/main.go":    imports("cmd/opstream/flags", "consumers/worker", "producers", "projections/console", "schemas", "domain", "internal/embedded"),
			"consumers/worker/a.go":   imports("consumers/scheduler", "schemas", "domain/operation", "internal/embedded"),
			"producers/a.go":          imports("schemas", "domain", "internal/embedded"),
			"projections/a.go":        imports("projections/sqlite", "schemas", "domain"),
			"schemas/a.go":            imports("schemas/golden", "domain", "internal/murmur"),
			"internal/embedded/a.go":  imports("internal/murmur", "schemas", "domain"),
			"domain/operation/a.go":   imports("domain/retry"),
			"examples/crm/main.go":    imports("producers"),
			"a.go":                    imports("schemas"),
			"consumers/testdata/a.go": imports("producers"),
		}},
		{"imports", "no layer imports what is above or beside it", map[string]string{
			"domain/a.go": `package domain
import (
	"github.com/opstream/opstream/schemas"     // want: domain must not import schemas: beside itself it may import nothing of the project
	"github.com/opstream/opstream/internal/x"  // want: domain must not import internal
	"github.com/opstream/opstream"             // want: domain must not import .
	"github.com/opstream/opstreamer/consumers"
)`,
			"schemas/a.go": `package schemas
import (
	"github.com/opstream/opstream/producers" // want: schemas must not import producers: beside itself it may import domain, internal
	_ "github.com/opstream/opstream/cmd/opstream" // want: schemas must not import cmd
)`,
			"consumers/scheduler/a.go": `package scheduler
import p "github.com/opstream/opstream/producers"      // want: consumers must not import producers
import "github.com/opstream/opstream/projections/sqlite" // want: consumers must not import projections
`,
			"producers/a.go":           "package producers\n" + `import "github.com/opstream/opstream/consumers/worker" // want: producers must not import consumers`,
			"projections/console/a.go": "package console\n" + `import "github.com/opstream/opstream/producers" // want: projections must not import producers`,
			"internal/embedded/a.go": `package embedded
import (
	"github.com/opstream/opstream/consumers"   // want: internal must not import consumers
	"github.com/opstream/opstream/producers"   // want: internal must not import producers
	"github.com/opstream/opstream/projections" // want: internal must not import projections
	"github.com/opstream/opstream/cmd"         // want: internal must not import cmd
)`,
		}},
		{"imports", "tests keep to it too", map[string]string{
			"projections/a_test.go": "package projections_test\n" + `import "github.com/opstream/opstream/producers" // want: projections must not import producers`,
		}},
		{"imports", "a folder that nobody has given a place", map[string]string{
			"pkg/a.go": "package pkg // want: pkg is none",
		}},
		{"imports", "dot imports", map[string]string{
			"domain/a.go": "package domain\n" + `import . "strings" // want: a dot import hides`,
		}},

		{"purity", "what only computes", map[string]string{
			"domain/a.go": `package domain
import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/opstream/opstream/domain/retry"
)
var epoch = time.Unix(0, 0).Add(time.Second)
func dice(seed uint64) int { return rand.New(rand.NewPCG(seed, 0)).IntN(6) }
func id(s string) uuid.UUID { return uuid.NewSHA1(uuid.NameSpaceURL, []byte(fmt.Sprint(s))) }
func shadow(rand *rand.Rand, time clock) { rand.IntN(6); time.Now() }
`,
			"domain/a_test.go": `package domain
import ("os"; "time"; "pgregory.net/rapid")
func elapsed() { os.Getpid(); time.Now(); go rapid.Check(nil, nil) }
`,
			"producers/a.go": `package producers
import ("os"; "time"; "github.com/google/uuid")
func id() { os.Getpid(); time.Now(); uuid.NewV7() }
`,
		}},
		{"purity", "packages that reach outside", map[string]string{
			"domain/operation/a.go": `package operation
import (
	"crypto/rand"  // want: domain must not import crypto/rand
	"database/sql" // want: domain must not import database/sql
	"log"          // want: domain must not import log
	"log/slog"     // want: domain must not import log/slog
	"net"          // want: domain must not import net
	"net/http"     // want: domain must not import net/http
	"os"           // want: domain must not import os
	"os/exec"      // want: domain must not import os/exec
	"sync/atomic"  // want: domain must not import sync/atomic
	"github.com/twmb/franz-go/pkg/kgo" // want: add it to pureModules
)`,
		}},
		{"purity", "clock, dice, ids, goroutines", map[string]string{
			"domain/a.go": `package domain
import (
	"context"
	"fmt"
	"math/rand"
	dice "math/rand/v2"
	"time"
	"github.com/google/uuid"
)
func a() {
	_ = time.Now()            // want: domain must not use time.Now
	_ = time.Since(time.Time{}) // want: domain must not use time.Since
	_ = time.Until(time.Time{}) // want: domain must not use time.Until
	_ = time.After(0)         // want: domain must not use time.After
	_ = rand.Int()            // want: hidden seed
	dice.Shuffle(0, nil)      // want: hidden seed
	_ = uuid.New()            // want: domain must not use github.com/google/uuid.New:
	_, _ = uuid.NewV7()       // want: domain must not use github.com/google/uuid.NewV7
	fmt.Println()             // want: domain must not use fmt.Println
	_ = context.Background()  // want: domain must not use context.Background
	go a()                    // want: domain must not start goroutines
}
type config struct{ now func() time.Time }
var byValue = config{
	now: time.Now, // want: domain must not use time.Now
}
`,
		}},

		{"calls", "sleep", map[string]string{
			"consumers/a.go": `package consumers
import ("time"; "testing/synctest")
func a() {
	time.Sleep(1) // want: wait for a signal

	// sleep: the broker offers no signal for this
	time.Sleep(1)

	// The reason may take
	// sleep: more than
	// one line.
	time.Sleep(1)

	// sleep:
	time.Sleep(1) // want: wait for a signal

	// sleep: this comment is too far away

	time.Sleep(1) // want: wait for a signal
}
`,
			"consumers/a_test.go": `package consumers
import ("testing"; "testing/synctest"; clock "time")
func TestA(t *testing.T) {
	clock.Sleep(1) // want: wait for a signal
	synctest.Test(t, func(t *testing.T) {
		clock.Sleep(1)
	})
	f := clock.Sleep // want: wait for a signal
}
`,
			"cmd/opstream/main.go": "package main\nimport \"time\"\nfunc main() {\ntime.Sleep(1) // want: wait for a signal\n}\n",
		}},
		{"calls", "a context that nobody ends", map[string]string{
			"consumers/a.go": `package consumers
import ("context"; "time")
func a() {
	b(context.Background()) // want: take the caller's context instead of context.Background
	b(context.` + "TO" + `DO())       // want: take the caller's context
	// detached: the last flush must not be cut off by what stops the rest
	b(context.Background())
	// detached: the reason stands before the statement
	ctx, cancel := context.WithTimeout(
		context.Background(), time.Second)
	ctx, cancel = context.WithTimeout(
		// detached: or before the call
		context.Background(), time.Second)
	// detached: a reason for the function literal is none for what is in it
	c(func() {
		b(context.Background()) // want: take the caller's context
	})
	b(context.WithoutCancel(ctx))
}
`,
			"consumers/a_test.go":                 "package consumers\nimport \"context\"\nvar ctx = context.Background()\n",
			"projections/projectiontest/suite.go": "package projectiontest\nimport \"context\"\nvar ctx = context.Background()\n",
			"internal/embedded/a.go":              "package embedded\nimport \"context\"\nvar ctx = context.Background()\n",
			"cmd/opstream/main.go":                "package main\nimport \"context\"\nvar ctx = context.Background()\n",
		}},
		{"calls", "panic, exit, print", map[string]string{
			"domain/a.go": `package domain
func a(n int) {
	panic("no") // want: return an error instead of the panic
	switch n {
	default:
		// invariant: validate has refused every other value
		panic("broken")
	}
	println("x") // want: the builtin println
}
func b(panic func(string)) { panic("the parameter") }
`,
			"internal/embedded/a.go": `package embedded
import ("log"; "os")
func a() {
	panic("no")  // want: return an error instead of the panic
	os.Exit(1)   // want: only a command ends the process
	log.Fatal(1) // want: only a command ends the process
}
`,
			"cmd/opstream/main.go": "package main\nimport \"os\"\nfunc main() { os.Exit(1) }\n",
			"domain/a_test.go":     "package domain\nimport \"os\"\nfunc a() { panic(1); os.Exit(1) }\n",
			"schemas/api.gen.go":   "// Code generated by a generator. DO NOT EDIT.\n\npackage schemas\nfunc a() { panic(1) }\n",
		}},
		{"calls", "init", map[string]string{
			"cmd/opstream/main.go": "package main\nfunc init() {} // want: no init functions\n",
			"domain/a_test.go":     "package domain\nfunc init() {} // want: no init functions\n",
			"domain/a.go":          "package domain\ntype t struct{}\nfunc (t) init() {}\n",
		}},

		{"comments", "packages and commands that say what they are for", map[string]string{
			"domain/doc.go":        "// Package domain decides.\npackage domain\n",
			"domain/a.go":          "package domain\n",
			"domain/a_test.go":     "package domain_test\n",
			"cmd/opstream/main.go": "// Command opstream is the program.\npackage main\n",
			"test/a_test.go":       "package test\n",
		}},
		{"comments", "no comment", map[string]string{
			"domain/a.go":    "package domain // want: expected a package comment that begins with \"Package domain \"\n",
			"schemas/a.go":   "// Package schemas is cut off by the blank line.\n\npackage schemas // want: no blank line before\n",
			"cmd/x/main.go":  "package main // want: begins with \"Command \"\n",
			"internal/b.go":  "//go:build linux\n\npackage b // want: expected a package comment\n",
			"examples/a.go":  "//go:build linux\n\n// Package examples is here.\npackage examples\n",
			"deploy/doc.go":  "/* Package deploy is here. */\npackage deploy\n",
			"producers/a.go": "/*\nPackage producers is here.\n*/\npackage producers\n",
		}},
		{"comments", "a comment that begins with something else", map[string]string{
			"domain/a.go":   "/* The domain. */ // want: but it begins with \"The domain.\npackage domain\n",
			"schemas/a.go":  "/* Package schema has lost a letter. */ // want: \"Package schemas \"\npackage schemas\n",
			"cmd/x/main.go": "/* Package main is x. */ // want: \"Command \"\npackage main\n",
		}},
		{"comments", "two comments", map[string]string{
			"domain/a.go": "// Package domain decides.\npackage domain\n",
			"domain/b.go": "/* Package domain decides, again. */ // want: has a comment in domain/a.go already\npackage domain\n",
			"domain/c.go": "// Package domain is generated.\n\n// Code generated by x. DO NOT EDIT.\n\n// Package domain is generated.\npackage domain\n",
		}},

		{"words", "what may stand", map[string]string{
			"README.md":          "our consumers/wo" + "rk/ folder, $HOME/ro" + "ot/ and ${dir}/wo" + "rk/; mktemp dir.XX" + "XXXX; TO" + "DOs; example.org\n",
			"deploy/picture.png": "TO" + "DO",
			"program":            "\x7fELF\x00 TO" + "DO",
			"web/lib.min.js":     "TO" + "DO",
			"LICENSE":            "TO" + "DO",
		}},
		{"words", "unfinished work", map[string]string{
			"a.go":            "package a\n// TO" + "DO: later // want: finish it\n",
			"b.yaml":          "a: b # FIX" + "ME // want: finish it\n",
			".ci/run":         "# XX" + "X // want: finish it\n",
			"c.html":          "<!-- TO" + "DO --> // want: finish it\n",
			"bad.go":          "package bad\nfunc { // TO" + "DO // want: finish it\n",
			"t_test.go":       "package a\n// TO" + "DO // want: finish it\n",
			"testdata/x.json": "\"TO" + "DO\" // want: finish it\n",
		}},
		{"words", "folders of one machine", map[string]string{
			"a.md":          "see /wo" + "rk/main // want: name no folder\n",
			"deploy/a.json": "{\"a\": \"/ro" + "ot/x\"} // want: name no folder\n",
			"a.sh":          "ok\n/ro" + "ot/x // want: name no folder\nfile:///wo" + "rk/x\n",
		}},
		{"words", "registry hosts", map[string]string{
			"a.sh": "curl https://proxy.gol" + "ang.org/x // want: leave the host\n" +
				"curl https://sum.gol" + "ang.org/x // want: leave the host\n" +
				"curl https://registry.npm" + "js.org/x // want: leave the host\n" +
				"curl https://py" + "pi.org/x // want: leave the host\n" +
				"curl https://files.python" + "hosted.org/x // want: leave the host\n" +
				"curl https://repo1.ma" + "ven.org/x // want: leave the host\n" +
				"curl https://repo.maven.ap" + "ache.org/x // want: leave the host\n" +
				"curl https://deb.deb" + "ian.org/x // want: leave the host\n" +
				"curl https://security.deb" + "ian.org/x // want: leave the host\n" +
				"curl https://archive.ubu" + "ntu.com/x // want: leave the host\n" +
				"curl https://static.crates" + ".io/x // want: leave the host\n",
		}},

		{"names", "names that say something", map[string]string{
			"domain/operation/a.go":                "package operation\n",
			"domain/operation/a_test.go":           "package operation_test\n",
			"projections/projectiontest/a.go":      "package projectiontest\n",
			"internal/database/a.go":               "package database\n",
			"internal/lint/testdata/utils/util.go": "package utils\n",
		}},
		{"names", "drawers", map[string]string{
			"internal/util/a.go":         "package util // want: \"util\" says nothing\n",
			"internal/util/b.go":         "package util\n",
			"domain/x/a.go":              "package helpers // want: \"helpers\" says nothing\n",
			"consumers/common/wire/a.go": "package wire // want: \"common\" says nothing\n",
			"internal/base/a.go":         "package base // want: \"base\" says nothing\n",
			"internal/misc/a_test.go":    "package misc_test // want: \"misc\" says nothing\n",
		}},
	}

	type tally struct{ passes, finds int }
	tallies := map[string]*tally{}
	for _, rule := range Rules() {
		tallies[rule.Name] = &tally{}
	}
	for _, test := range tests {
		t.Run(test.rule+"/"+test.name, func(t *testing.T) {
			tree := New(test.files)
			marked := len(wanted(tree))
			for _, rule := range Rules() {
				if rule.Name == test.rule {
					compare(t, tree, rule)
				}
			}
			if tallies[test.rule] == nil {
				t.Fatalf("expected one of the rules, but there is none called %q", test.rule)
			}
			if marked > 0 {
				tallies[test.rule].finds++
			} else {
				tallies[test.rule].passes++
			}
		})
	}
	for name, n := range tallies {
		if n.finds == 0 {
			t.Errorf("expected a tree that breaks rule %s, but no test has one", name)
		}
	}
}

// imports makes a file that imports folders of the project.
func imports(folders ...string) string {
	var b strings.Builder
	b.WriteString("package x\n")
	for _, folder := range folders {
		fmt.Fprintf(&b, "import _ %q\n", Module+"/"+folder)
	}
	return b.String()
}

const mark = "// want: "

// wanted returns what the marks in a tree ask for, by place.
func wanted(tree *Tree) map[string]string {
	want := map[string]string{}
	for _, f := range tree.Files {
		for i, line := range strings.Split(string(f.Source), "\n") {
			if _, text, ok := strings.Cut(line, mark); ok {
				want[fmt.Sprintf("%s:%d", f.Path, i+1)] = text
			}
		}
	}
	return want
}

func compare(t *testing.T, tree *Tree, rule Rule) {
	t.Helper()
	want := wanted(tree)
	for _, finding := range rule.Check(tree) {
		place := fmt.Sprintf("%s:%d", finding.Path, finding.Line)
		text, ok := want[place]
		switch {
		case !ok:
			t.Errorf("expected nothing here, but rule %s found: %s", rule.Name, finding)
		case !strings.Contains(finding.Text, text):
			t.Errorf("expected rule %s to say %q, but it said: %s", rule.Name, text, finding)
		}
		delete(want, place)
	}
	for place, text := range want {
		t.Errorf("expected rule %s to say at %s %q, but it found nothing there", rule.Name, place, text)
	}
}
