package lint

import (
	"bytes"
	"fmt"
	"regexp"
)

// A ban is a text that has no place in a file, and what to do instead.
type ban struct {
	text   string
	around string // "word": stands alone; "path": not the middle of a longer path; "": anywhere
	advice string
}

// bans are written in pieces, so that this file keeps its own rule.
func bans() []ban {
	const (
		unfinished = "finish it, or open an issue and say in the comment what holds today"
		machine    = "name no folder of one machine: use a relative path, or a variable"
		registry   = "leave the host to the client's own configuration, which may name a mirror"
	)
	return []ban{
		{"TO" + "DO", "word", unfinished},
		{"FIX" + "ME", "word", unfinished},
		{"XX" + "X", "word", unfinished},
		{"/wo" + "rk/", "path", machine},
		{"/ro" + "ot/", "path", machine},
		{"/Us" + "ers/", "path", machine},
		{"proxy.gol" + "ang.org", "", registry},
		{"sum.gol" + "ang.org", "", registry},
		{"registry.npm" + "js.org", "", registry},
		{"py" + "pi.org", "", registry},
		{"files.python" + "hosted.org", "", registry},
		{"repo1.ma" + "ven.org", "", registry},
		{"repo.maven.ap" + "ache.org", "", registry},
		{"deb.deb" + "ian.org", "", registry},
		{"security.deb" + "ian.org", "", registry},
		{"archive.ubu" + "ntu.com", "", registry},
		{"crates" + ".io", "", registry},
	}
}

// Words checks every file that people read for unfinished work, for paths of the machine that it was written on, and for
// the hosts of public registries.
func Words(t *Tree) []Finding {
	list := bans()
	var found []Finding
	for _, f := range t.Files {
		if !isText(f.Path) || isBinary(f.Source) {
			continue
		}
		for _, b := range list {
			// A plain search first: nearly all files have none of them, and it is a hundred times faster.
			if !bytes.Contains(f.Source, []byte(b.text)) {
				continue
			}
			for _, at := range b.pattern().FindAllSubmatchIndex(f.Source, -1) {
				line := 1 + bytes.Count(f.Source[:at[2]], []byte("\n"))
				found = append(found, Finding{Path: f.Path, Line: line, Text: fmt.Sprintf("%q: %s", b.text, b.advice)})
			}
		}
	}
	return found
}

func (b ban) pattern() *regexp.Regexp {
	text := "(" + regexp.QuoteMeta(b.text) + ")"
	switch b.around {
	case "word":
		text = `\b` + text + `\b`
	case "path":
		text = `(?:^|[^\w.\-}/])` + text
	}
	return regexp.MustCompile(`(?m)` + text)
}
