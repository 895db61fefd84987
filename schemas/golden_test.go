package schemas

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

var update = flag.Bool("update", false, "write the golden files that are missing; one that is there is never changed")

// golden writes a record so that people can read it: key, headers in order, an empty line, the value.
func golden(rec *kgo.Record) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "key: %q\n", rec.Key)
	for _, h := range rec.Headers {
		fmt.Fprintf(&b, "%s: %q\n", h.Key, h.Value)
	}
	fmt.Fprintf(&b, "\n%s\n", rec.Value)
	return b.Bytes()
}

// fromGolden is the inverse of golden.
func fromGolden(t testing.TB, text []byte) *kgo.Record {
	head, value, ok := bytes.Cut(text, []byte("\n\n"))
	if !ok {
		t.Fatalf("expected an empty line between headers and value, but got %q", text)
	}
	rec := &kgo.Record{Value: bytes.TrimSuffix(value, []byte("\n"))}
	for i, line := range strings.Split(string(head), "\n") {
		name, quoted, _ := strings.Cut(line, ": ")
		s, err := strconv.Unquote(quoted)
		if err != nil {
			t.Fatalf("line %d: %v", i+1, err)
		}
		if i == 0 {
			rec.Key = []byte(s)
		} else {
			rec.Headers = append(rec.Headers, kgo.RecordHeader{Key: name, Value: []byte(s)})
		}
	}
	return rec
}

// The bytes on the wire never change. A message that has to look different gets a new version and keeps its old decoder;
// a new optional member gets a further example beside the old ones.
func TestGolden(t *testing.T) {
	for _, x := range examples(t) {
		path := filepath.Join("testdata", "golden", filepath.FromSlash(x.name)+".txt")
		got := golden(x.rec)
		want, err := os.ReadFile(path)
		if os.IsNotExist(err) && *update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%v (run the test with -update to write it)", err)
			continue
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: the bytes on the wire have changed; expected\n%s, but got\n%s", path, want, got)
		}
	}
}

// Every golden file, those of old versions too, can be decoded for ever.
func TestGoldenFilesAreReadable(t *testing.T) {
	root := filepath.Join("testdata", "golden")
	files := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		rec := fromGolden(t, text)
		if !bytes.Equal(golden(rec), text) {
			t.Errorf("%s: expected to read it exactly, but it came out as\n%s", path, golden(rec))
		}
		topic := filepath.Base(filepath.Dir(path))
		if _, err := decodeAny(topic, rec); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < len(Registry()) {
		t.Errorf("expected a golden file for each of %d messages, but found %d", len(Registry()), files)
	}
}

func decodeAny(topic string, rec *kgo.Record) (any, error) {
	switch topic {
	case TopicRequests:
		return DecodeCommand(rec)
	case TopicReports:
		return DecodeReport(rec)
	case TopicSignals:
		inner, err := DecodeForwarded(rec)
		if err != nil {
			return nil, err
		}
		return DecodeCommand(inner)
	case TopicJournal:
		return DecodeEvent(rec)
	case TopicSessions:
		return DecodeHeartbeat(rec)
	case TopicInboxes:
		it, stop, err := DecodeInbox(rec)
		if it != nil {
			return it, err
		}
		return stop, err
	case TopicCheckpoints:
		return DecodeCheckpoint(rec)
	}
	return nil, fmt.Errorf("expected the short name of a topic, but got %q", topic)
}
