package main

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/schemas"
)

// lettersOn is a topic of dead letters on a broker in memory.
type lettersOn struct {
	t      *testing.T
	seeds  []string
	client *kgo.Client
	topics schemas.Topics
}

func newLettersOn(t *testing.T) *lettersOn {
	t.Helper()
	l := &lettersOn{t: t, topics: schemas.Topics{Prefix: "test."}}
	l.seeds = kafkatest.Cluster(t, kafkatest.Topic{Name: l.topics.DeadLetter(), Partitions: 1})
	l.client = kafkatest.Client(t, l.seeds, kgo.ProducerBatchMaxBytes(8<<20))
	return l
}

func (l *lettersOn) bury(rec *kgo.Record, code schemas.Code, minute int) {
	l.t.Helper()
	at := operation.TimeOf(time.Date(2030, 1, 1, 0, minute, 0, 0, time.UTC))
	dead := schemas.DeadLetter(l.topics, rec, code, schemas.Reasons[code], "a scheduler", at)
	dead.Timestamp = at.Go()
	l.put(dead)
}

func (l *lettersOn) put(rec *kgo.Record) {
	l.t.Helper()
	if err := l.client.ProduceSync(l.t.Context(), rec).FirstErr(); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lettersOn) run(args ...string) result {
	l.t.Helper()
	return run(l.t, "", append([]string{"deadletter"}, append(args, "--brokers", strings.Join(l.seeds, ","), "--topic-prefix", l.topics.Prefix)...)...)
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	l := newLettersOn(t)
	l.run("list").expect(t, exitOK, "no dead letters")
	l.run("show", "0-0").expect(t, exitNotFound, "there is no dead letter at 0-0", "opstream deadletter list")

	hostile := "a\x1b[2J\u202e\x00\xff"
	requests, reports := l.topics.Requests(), l.topics.Reports()
	headers := func(more ...kgo.RecordHeader) []kgo.RecordHeader {
		return append([]kgo.RecordHeader{{Key: "ce_id", Value: []byte("e-1")}, {Key: "ce_type", Value: []byte("com.example.x")}, {Key: "ce_source", Value: []byte("/crm")}}, more...)
	}
	l.bury(&kgo.Record{Topic: requests, Partition: 3, Offset: 17, Key: []byte("o/a"), Value: []byte(`{"a":1}`), Headers: headers()}, schemas.UnknownType, 0)
	l.bury(&kgo.Record{Topic: requests, Partition: 1, Offset: 2, Key: []byte(hostile), Value: []byte(hostile + "\nline two"), Headers: headers(kgo.RecordHeader{Key: hostile, Value: []byte(hostile)})}, schemas.MalformedJSON, 1)
	l.bury(&kgo.Record{Topic: reports, Offset: 5}, schemas.MissingHeader, 2)
	l.bury(&kgo.Record{Topic: requests, Offset: 6, Value: []byte(strings.Repeat("é", 3<<20))}, schemas.TooLarge, 3)
	l.bury(&kgo.Record{Topic: requests, Offset: 7, Value: []byte(`{"a":1,"a":2}`)}, schemas.DuplicateField, 4)
	l.put(&kgo.Record{Topic: l.topics.DeadLetter(), Value: []byte("by somebody else")}) // without any of our headers

	r := l.run("list")
	r.expect(t, exitOK, "unknown_type", requests+" 3-17", `a\x1b[2J\u202e\x00\xff`, "malformed_json", reports+" 0-5", "missing_header", "too_large", "0-5")
	shows(t, r.out)
	type listed struct {
		Position, Code, Reason, Next, Topic, Key, Cut string
		Size                                          int
	}
	all := lines[listed](t, l.run("list", "-o", "json").out)
	if len(all) != 6 || all[0].Position != "0-0" || all[0].Code != "unknown_type" || all[0].Key != "o/a" || all[0].Reason == "" || all[0].Next == "" ||
		all[3].Cut != fmt.Sprintf("value of %d bytes", 6<<20) || all[5].Code != "" {
		t.Errorf("expected all dead letters, but got %+v", all)
	}
	for _, c := range []struct{ args, want string }{
		{"-n 2", "0-4 0-5"},
		{"-n 0", "0-0 0-1 0-2 0-3 0-4 0-5"},
		{"-n 100", "0-0 0-1 0-2 0-3 0-4 0-5"},
		{"--code too_large", "0-3"},
		{"--code none", ""},
		{"--topic reports", "0-2"},
		{"--topic test.requests -n 1", "0-4"},
		{"--since 2030-01-01T00:03:00Z --topic requests", "0-3 0-4"},
	} {
		var got []string
		for _, d := range lines[listed](t, l.run(append([]string{"list", "-o", "json"}, strings.Fields(c.args)...)...).out) {
			got = append(got, d.Position)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("expected %q to list %s, but got %v", c.args, c.want, got)
		}
	}
	l.run("list", "-n", "2").expect(t, exitOK, "the last 2 of 6")

	r = l.run("show", "0-0")
	r.expect(t, exitOK, "code       unknown_type", "next       check ce_type", "found at   test.requests 3-17", "by         a scheduler", "header     ce_type: com.example.x", `{"a":1}`, "7 bytes")
	r = l.run("show", "0-1")
	r.expect(t, exitOK, `a\x1b[2J\u202e\x00\xff`, "\nline two\n")
	shows(t, r.out)
	l.run("show", "0-2").expect(t, exitOK, "none (a tombstone)", "missing_header")
	r = l.run("show", "0-3")
	r.expect(t, exitOK, "cut off    value of 6291456 bytes", "more bytes; --output json has all")
	if len(r.out) > 8<<10 {
		t.Errorf("expected a bounded answer for people, but got %d bytes", len(r.out))
	}
	l.run("show", "0-5").expect(t, exitOK, "by somebody else")

	type shown struct {
		Data    any
		Text    string
		Value   string
		Headers []struct{ Key, Value, Bytes string }
	}
	for position, want := range map[string]string{"0-0": `{"a":1}`, "0-1": hostile + "\nline two", "0-4": `{"a":1,"a":2}`} {
		got := lines[shown](t, l.run("show", position, "-o", "json").out)[0]
		value := got.Text
		if got.Data != nil {
			value = `{"a":1}`
		} else if got.Value != "" {
			b, err := base64.StdEncoding.DecodeString(got.Value)
			if err != nil {
				t.Fatal(err)
			}
			value = string(b)
		}
		if value != want {
			t.Errorf("%s: expected the value as it came, %q, but got %+v", position, want, got)
		}
		for _, h := range got.Headers {
			if strings.HasPrefix(h.Key, "x_") {
				t.Errorf("%s: expected only the headers that it came with, but got %+v", position, got.Headers)
			}
		}
	}

	for _, args := range [][]string{{"show"}, {"show", "x"}, {"show", "0"}, {"show", "0-1", "0-2"}, {"show", "-1-1"}, {"show", "0-99999999999999999999"}, {"show", "\x1b[2J"}, {"list", "x"}, {"list", "-n", "-1"}, {"list", "--since", "soon"}, {"list", "-o", "xml"}} {
		r := l.run(args...)
		r.expect(t, exitUsage, "opstream:")
		shows(t, r.err)
	}
	run(t, "", "deadletter", "list", "--brokers", l.seeds[0]).expect(t, exitFailed, "there is no topic opstream.deadletter", "--topic-prefix")
	run(t, "", "deadletter").expect(t, exitOK, "deadletter list", "deadletter show")
}
