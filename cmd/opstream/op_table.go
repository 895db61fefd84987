package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// clean makes a text from outside safe to show: whatever is not a visible character is written as an escape, so that no
// name can move the cursor, change colours or turn the direction of writing.
func clean(s string) string {
	visible := true
	for _, r := range s {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			visible = false
			break
		}
	}
	if visible {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		s = s[n:]
	}
	return b.String()
}

// cleanJSON escapes in JSON what clean escapes elsewhere and JSON lets stand: the value is the same. Such characters can only
// stand in strings.
func cleanJSON(b []byte) []byte {
	safe := true
	for i := 0; i < len(b) && safe; i++ {
		safe = b[i] >= ' ' && b[i] < 0x7f || b[i] == '\n'
	}
	if safe {
		return b
	}
	out := make([]byte, 0, len(b)+16)
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case r == '\n' || unicode.IsPrint(r):
			out = append(out, b[:n]...)
		case r > 0xffff:
			r -= 0x10000
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		b = b[n:]
	}
	return out
}

// printJSON writes v as one line.
func printJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	_, err := w.Write(cleanJSON(b.Bytes()))
	return err
}

// terminal returns the width of the terminal that w is, 0 when it is none.
func terminal(w any) int {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width < 20 {
		return 80
	}
	return width
}

// table prints rows in columns. Rows are collected and printed in parts, so that a long list takes bounded memory; a column
// never becomes narrower from one part to the next.
type table struct {
	out    io.Writer
	width  int        // of the terminal; 0: lines may be of any length
	rows   [][]string // not printed yet; the first of all is the header
	begun  bool
	widths []int
	broken error
}

const (
	tablePart   = 500 // rows
	columnSpace = 2
	columnLeast = 8 // a column is cut no further
)

func newTable(out io.Writer, header ...string) *table {
	return &table{out: out, width: terminal(out), rows: [][]string{header}, widths: make([]int, len(header))}
}

// row adds a row. The cells may hold anything.
func (t *table) row(cells ...string) {
	for i := range cells {
		cells[i] = clean(cells[i])
	}
	t.rows = append(t.rows, cells)
	if len(t.rows) > tablePart {
		t.print()
	}
}

// empty says whether no row was ever added.
func (t *table) empty() bool { return !t.begun && len(t.rows) <= 1 }

// flush is print for the last time; it returns the first error of writing.
func (t *table) flush() error {
	t.print()
	return t.broken
}

// print prints the rows that were added since the last time.
func (t *table) print() {
	if t.broken != nil || len(t.rows) == 0 {
		return
	}
	t.begun = true
	for _, row := range t.rows {
		for i, cell := range row {
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(cell))
		}
	}
	widths := t.fit()
	var b bytes.Buffer
	for _, row := range t.rows {
		for i, cell := range row {
			last := i == len(row)-1
			if t.width > 0 || !last {
				cell = cut(cell, widths[i])
			}
			b.WriteString(cell)
			if !last {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+columnSpace))
			}
		}
		// Cells at the end may be empty.
		b.Truncate(len(bytes.TrimRight(b.Bytes(), " ")))
		b.WriteByte('\n')
	}
	t.rows = t.rows[:0]
	_, t.broken = t.out.Write(b.Bytes())
}

// fit takes from the widest columns until a line fits the terminal.
func (t *table) fit() []int {
	widths := append([]int(nil), t.widths...)
	if t.width == 0 {
		return widths
	}
	total := columnSpace * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for total > t.width {
		widest := 0
		for i, w := range widths {
			if w >= widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= columnLeast {
			break
		}
		widths[widest]--
		total--
	}
	return widths
}

// cut shortens a text to n characters.
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	runes := []rune(s)
	return string(runes[:max(0, n-1)]) + "…"
}

// shortTime writes a time for people: local, and without what they know.
func shortTime(t, now time.Time) string {
	t, now = t.Local(), now.Local()
	switch {
	case t.IsZero():
		return ""
	case t.Year() == now.Year() && t.YearDay() == now.YearDay():
		return t.Format("15:04:05")
	case t.Year() == now.Year():
		return t.Format("Jan 02 15:04")
	default:
		return t.Format("2006-01-02 15:04")
	}
}

// age writes how long ago t was, to the two digits that people read.
func age(t, now time.Time) string {
	d := max(0, now.Sub(t))
	switch {
	case t.IsZero():
		return ""
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	default:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
}

// progress is one line on a terminal that is written over and over. On anything but a terminal it is silent.
type progress struct {
	out   io.Writer
	width int
	last  time.Time
	shown bool
}

const progressEvery = 200 * time.Millisecond

// newProgress shows progress on w, unless programs read the output.
func newProgress(w io.Writer, output outputFlag) *progress {
	if output.json() {
		return &progress{}
	}
	return &progress{out: w, width: terminal(w)}
}

// on says whether anybody sees it.
func (p *progress) on() bool { return p.width > 0 }

// show replaces the line, unless that was done a moment ago.
func (p *progress) show(format string, args ...any) {
	if !p.on() {
		return
	}
	now := time.Now()
	if now.Sub(p.last) < progressEvery {
		return
	}
	p.last, p.shown = now, true
	fmt.Fprintf(p.out, "\r\x1b[K%s", cut(clean(fmt.Sprintf(format, args...)), p.width-1))
}

// clear takes the line away, so that something else can be printed.
func (p *progress) clear() {
	if p.shown {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.shown, p.last = false, time.Time{}
	}
}
