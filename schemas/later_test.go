//go:build !later

package schemas

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
)

// widened returns a JSON text with one more member in every object of ours. What callers and handlers have given us stays as it is.
func widened(t *testing.T, text []byte) []byte {
	t.Helper()
	r := newReader(text, maxOwnBytes)
	r.space()
	var out bytes.Buffer
	switch r.peek() {
	case '{':
		out.WriteByte('{')
		for o := r.object(); r.next(o); {
			name, value := string(r.name), r.raw()
			out.WriteString(`"` + name + `":`)
			switch name {
			case "data", "result", "progress", "checkpoint", "request", "details":
				out.Write(value)
			default:
				out.Write(widened(t, value))
			}
			out.WriteByte(',')
		}
		out.WriteString(memberLater + "}")
	case '[':
		out.WriteByte('[')
		if r.array() {
			for i := 0; r.element(i); i++ {
				if i > 0 {
					out.WriteByte(',')
				}
				out.Write(widened(t, r.raw()))
			}
		}
		out.WriteByte(']')
	default:
		out.Write(text)
		return out.Bytes()
	}
	if err := r.end(); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return out.Bytes()
}

// withoutRaw clears the bytes of the request that a message carries, and returns them: they are kept as they came.
func withoutRaw(message any) (raw []byte) {
	var q *operation.Request
	switch m := message.(type) {
	case operation.Event:
		q = m.Request
	case *Item:
		q = m.Request
	case Checkpoint:
		if m.State != nil {
			q = m.State.Request
		}
	}
	if q != nil {
		raw, q.Raw = q.Raw, nil
	}
	return raw
}

// While an installation is brought up to date, its older half reads what the newer one writes.
func TestMembersOfANewerVersionAreSkipped(t *testing.T) {
	root, topicsSeen := filepath.Join("testdata", "golden"), map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		topic := filepath.Base(filepath.Dir(path))
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rec := fromGolden(t, text)
		want, err := decodeAny(topic, rec)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			return nil
		}
		newer := *rec
		newer.Value = widened(t, rec.Value)
		newer.Headers = append(rec.Headers[:len(rec.Headers):len(rec.Headers)], kgo.RecordHeader{Key: headerLater, Value: []byte("1")})
		got, err := decodeAny(topic, &newer)
		if topic == TopicRequests {
			if bad, ok := IsDecodeError(err); !ok || bad.Code != UnknownField {
				t.Errorf("%s: expected a request with a member that nobody knows to be refused, but got %v, %v", path, got, err)
			}
			return nil
		}
		if err != nil {
			t.Errorf("%s: expected members that are not known to be skipped, but: %v\n%s", path, err, newer.Value)
			return nil
		}
		topicsSeen[topic] = true
		if raw, had := withoutRaw(got), withoutRaw(want); had != nil && !strings.Contains(string(raw), memberLater) {
			t.Errorf("%s: expected the request's bytes to be kept whole, but got %s", path, raw)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: expected\n%+v, but got\n%+v\nfrom %s", path, want, got, newer.Value)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, topic := range []string{TopicReports, TopicJournal, TopicSessions, TopicInboxes, TopicCheckpoints, TopicSignals} {
		if !topicsSeen[topic] {
			t.Errorf("expected a golden file of a message on %s, but there is none", topic)
		}
	}
}

// What the build tag later adds is what this test adds.
func TestWhatANewerVersionWritesIsAnObject(t *testing.T) {
	for _, value := range []string{`{}`, `{"a":1}`} {
		c := newCarrier()
		c.Value = []byte(value)
		c.fromLater()
		if want := strings.ReplaceAll(strings.TrimSuffix(value, "}")+","+memberLater+"}", "{,", "{"); string(c.Value) != want || len(c.Headers) != 1 {
			t.Errorf("expected %s and one header, but got %s and %v", want, c.Value, c.Headers)
		}
	}
}
