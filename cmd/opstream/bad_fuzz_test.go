package main

import (
	"bufio"
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/schemas"
)

// FuzzRequestLines: what submit sends has as many lines as the file, each is one of the file's or stands for one that was
// refused, and none is longer than the service takes.
func FuzzRequestLines(f *testing.F) {
	f.Add([]byte("\xef\xbb\xbf{}\n\n \r\n{}"), uint16(0), uint16(1))
	f.Add([]byte("x"), uint16(60_000), uint16(7))
	f.Add([]byte("\x00\n\n\n"), uint16(3), uint16(64))
	f.Fuzz(func(t *testing.T, file []byte, times, at uint16) {
		file = append(bytes.Repeat(file[:min(len(file), 40)], int(times)), file...)
		refused := map[int]bool{}
		l := &requestLines{in: bufio.NewReaderSize(bytes.NewReader(file), 16), refuse: func(line int, p *api.Problem) {
			if refused[line] || p.Detail == "" {
				t.Errorf("expected line %d to be refused once and with a reason, but got %v", line, p)
			}
			refused[line] = true
		}}
		// In small pieces, as a slow connection takes them.
		var sent bytes.Buffer
		if _, err := io.CopyBuffer(struct{ io.Writer }{&sent}, struct{ io.Reader }{l}, make([]byte, 1+int(at)%4096)); err != nil {
			t.Fatal(err)
		}
		want := strings.Split(strings.TrimPrefix(string(file), string(byteOrderMark)), "\n")
		if want[len(want)-1] == "" && (len(want) > 1 || len(file) == 0) {
			want = want[:len(want)-1]
		}
		got := strings.Split(strings.TrimSuffix(sent.String(), "\n"), "\n")
		if sent.Len() == 0 {
			got = nil
		}
		if len(got) != len(want) {
			t.Fatalf("expected %d lines, but got %d", len(want), len(got))
		}
		for i, line := range got {
			if expected := strings.TrimSpace(want[i]); refused[i+1] != (line == "") || line != "" && line != string(bytes.TrimSpace([]byte(want[i]))) {
				t.Errorf("line %d: expected %.100q, but got %.100q (refused: %v)", i+1, expected, line, refused[i+1])
			}
			if len(line) > api.BodyMax+1 {
				t.Errorf("line %d: expected at most %d bytes, but got %d", i+1, api.BodyMax, len(line))
			}
		}
	})
}

// FuzzDeadLetterIsSafeToShow: whatever was set aside, people see visible characters and programs one line of JSON.
func FuzzDeadLetterIsSafeToShow(f *testing.F) {
	f.Add([]byte("k"), []byte(`{"a":1}`), "x_code", []byte("unknown_type"), int64(0))
	f.Add([]byte("\xff"), []byte("\x1b[2J\r\n\u202e"), "x_at", []byte("9999-99-99"), int64(-1)<<62)
	f.Add([]byte(nil), []byte(nil), "ce_\x1b", []byte("\xff"), int64(1)<<62)
	f.Fuzz(func(t *testing.T, key, value []byte, name string, header []byte, millis int64) {
		rec := &kgo.Record{Key: key, Value: value, Timestamp: time.UnixMilli(millis), Headers: []kgo.RecordHeader{
			{Key: name, Value: header}, {Key: schemas.HeaderDeadReason, Value: value}, {Key: schemas.HeaderID, Value: key},
		}}
		d := readDeadLetter(rec)
		d.fill(rec)
		shows(t, d.text(rec))
		var line bytes.Buffer
		if err := printJSON(&line, d); err != nil {
			t.Fatal(err)
		}
		shows(t, line.String())
		if got := lines[deadLetter](t, line.String()); len(got) != 1 || got[0].Size != len(value) {
			t.Errorf("expected one line, but got %q", line.String())
		}
	})
}

func FuzzSince(f *testing.F) {
	for _, s := range []string{"10m", "-10m", "2030-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0000-01-01T00:00:00Z", "2016-12-31T23:59:60Z", "9223372036854775807ns", "1e9h", "\x00"} {
		f.Add(s)
	}
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text string) {
		at, err := parseSince(text, now)
		if err == nil && at > operation.TimeOf(time.Date(10000, 1, 2, 0, 0, 0, 0, time.UTC)) {
			t.Errorf("%q: expected a time that there is, but got %v", text, at)
		}
	})
}
