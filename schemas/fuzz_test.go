package schemas

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
)

// hostile lists inputs that have broken decoders: cut off, deep, huge, doubled, of the wrong type, badly encoded.
var hostile = []string{
	``, ` `, `{`, `}`, `[`, `{"`, `{"a`, `{"a"`, `{"a":`, `{"a":1`, `{"a":1,`, `{"a":1,}`, `{}{}`, `[]`, `null`, `true`, `0`, `""`, `"`, `"\`, `"\u`, `"\u00`, `"\ud800"`,
	`"\ud800\u0041"`, `"\ud83d\ude00"`, `"\uDFFF"`, "\"\xff\"", "\"\xed\xa0\x80\"", "\"\xc0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\x00\"", "\ufeff{}", `{"a":1,"a":2}`,
	`{"a":1,"\u0061":2}`, `{"id":1e400}`, `{"id":-}`, `{"id":00}`, `{"id":1.}`, `{"id":0x1}`, `{"id":1e+}`, `[1,]`, `[,1]`, `[1 2]`, `{"a" 1}`, `{a:1}`, `{'a':1}`, `//`, `{"a":1}//`,
	`{"id":"a","organization":"o","type":"import","priority":99999999999999999999999999999}`,
	`{"id":"a","organization":"o","type":"import","retry":{"multiplier":1e-400}}`,
	`{"id":"a","organization":"o","type":"import","regarding":[]}`,
	`{"id":"a","organization":"o","type":"import","unknown":{}}`,
	`{"id":"\u202e","organization":"o","type":"import"}`,
	strings.Repeat("[", 1000), strings.Repeat(`{"a":`, 1000), strings.Repeat("[", 64) + strings.Repeat("]", 64), strings.Repeat("[", 65) + strings.Repeat("]", 65),
	`{"data":` + strings.Repeat("9", 5000) + `}`, "{\"a\":1}\n\t\r ", "\v{}", "{}\x00",
}

// The hand-written reader takes and refuses what package jsontext does, up to its own limit of depth.
func agree(t *testing.T, in []byte) {
	t.Helper()
	r := newReader(in, MaxRequestBytes)
	r.space()
	r.opaque(MaxRequestBytes)
	err := r.end()
	if err != nil && (err.Code == TooDeep || err.Code == TooLarge) {
		return
	}
	valid := jsontext.Value(in).IsValid()
	if valid != (err == nil) {
		t.Errorf("%q: jsontext says valid=%v, but the reader says %v", in, valid, err)
	}
	if err == nil && r.refusal == nil {
		want := jsontext.Value(bytes.Clone(in))
		if e := want.Compact(); e != nil {
			t.Fatal(e)
		}
		if got := compact(nil, in); !bytes.Equal(bytes.TrimSpace(got), want) {
			t.Errorf("%q: expected %q, but got %q", in, want, got)
		}
	}
}

func TestReaderAgreesWithJSONText(t *testing.T) {
	for _, in := range hostile {
		agree(t, []byte(in))
	}
	for _, text := range []string{fullRequest, smallRequest} {
		for i := range text {
			agree(t, []byte(text[:i]))
			for _, c := range []byte{0, '"', '\\', '{', '}', '[', ',', '0', 'e', ' ', 0xff, 'u'} {
				changed := []byte(text)
				changed[i] = c
				agree(t, changed)
			}
		}
	}
}

func FuzzReader(f *testing.F) {
	for _, in := range hostile {
		f.Add([]byte(in))
	}
	f.Add([]byte(fullRequest))
	f.Fuzz(agree)
}

// Strings that the reader takes apart are what jsontext makes of them, and writing them again keeps them.
func FuzzStrings(f *testing.F) {
	for _, in := range hostile {
		f.Add([]byte(in))
	}
	f.Add([]byte(`"a\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00é"`))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := newReader(in, MaxRequestBytes)
		text := r.text()
		if r.end() != nil || r.refusal != nil {
			return
		}
		want, err := jsontext.AppendUnquote(nil, in)
		if bytes.ContainsAny(in[len(in)-1:], " \t\r\n") { // AppendUnquote wants nothing behind the string
			return
		}
		if err != nil || !bytes.Equal(text, want) {
			t.Errorf("%q: expected %q, but got %q (%v)", in, want, text, err)
		}
		again := newReader(appendString(nil, text), MaxRequestBytes*6)
		if got := again.text(); again.end() != nil || !bytes.Equal(got, text) {
			t.Errorf("%q: expected to read what was written, but got %q (%v)", text, got, again.err)
		}
	})
}

func FuzzParseRequest(f *testing.F) {
	for _, in := range hostile {
		f.Add([]byte(in), "ce-1")
	}
	f.Add([]byte(fullRequest), "")
	f.Add([]byte(smallRequest), "x")
	f.Fuzz(func(t *testing.T, in []byte, id string) {
		q, err := ParseRequest(in, id)
		if err == nil {
			fixedPoint(t, q)
		} else if outcome(err) == err.Error() {
			t.Errorf("expected a decode error or a refusal, but got %v", err)
		}
	})
}

// fuzzValues runs a decoder on records of every type of a topic with values from outside; what it takes must not change
// when it is written and read again.
func fuzzValues(f *testing.F, topic string, decode func(rec *kgo.Record) (any, error), encode func(v any, rec *kgo.Record) *kgo.Record) {
	byType := map[string]*kgo.Record{}
	for _, x := range examples(f) {
		if x.topic == topic {
			f.Add(x.typ, x.rec.Value)
			f.Add(x.typ, x.rec.Value[:len(x.rec.Value)/2])
			if byType[x.typ] == nil {
				byType[x.typ] = x.rec
			}
		}
	}
	for _, in := range hostile {
		for typ := range byType {
			f.Add(typ, []byte(in))
		}
	}
	f.Fuzz(func(t *testing.T, typ string, value []byte) {
		model := byType[typ]
		if model == nil {
			return
		}
		rec := &kgo.Record{Topic: model.Topic, Key: model.Key, Headers: model.Headers, Value: value}
		got, err := decode(rec)
		if err != nil {
			if outcome(err) == err.Error() {
				t.Errorf("expected a decode error or a refusal, but got %v", err)
			}
			return
		}
		if encode == nil {
			return
		}
		again, err := decode(encode(got, rec))
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%s: expected\n%+v, but got\n%+v, %v", value, got, again, err)
		}
	})
}

func FuzzDecodeCommand(f *testing.F) {
	fuzzValues(f, TopicRequests, func(rec *kgo.Record) (any, error) { return DecodeCommand(rec) }, func(v any, rec *kgo.Record) *kgo.Record {
		c := v.(operation.Command)
		return EncodeCommand(topics, &c, rec.Key)
	})
}

func FuzzDecodeReport(f *testing.F) {
	fuzzValues(f, TopicReports, func(rec *kgo.Record) (any, error) { return DecodeReport(rec) }, func(v any, rec *kgo.Record) *kgo.Record {
		c := v.(operation.Command)
		return EncodeReport(topics, &c, rec.Key)
	})
}

func FuzzDecodeEvent(f *testing.F) {
	fuzzValues(f, TopicJournal, func(rec *kgo.Record) (any, error) { return DecodeEvent(rec) }, func(v any, rec *kgo.Record) *kgo.Record {
		e := v.(operation.Event)
		out := EncodeEvent(&e, rec.Key, 0)
		new(Chain).Seal(out)
		return out
	})
}

func FuzzDecodeForwarded(f *testing.F) {
	fuzzValues(f, TopicSignals, func(rec *kgo.Record) (any, error) { return decodeAny(TopicSignals, rec) }, nil)
}

func FuzzDecodeHeartbeat(f *testing.F) {
	fuzzValues(f, TopicSessions, func(rec *kgo.Record) (any, error) { return DecodeHeartbeat(rec) }, func(v any, rec *kgo.Record) *kgo.Record {
		h := v.(Heartbeat)
		return EncodeHeartbeat(topics, &h)
	})
}

func FuzzDecodeInbox(f *testing.F) {
	fuzzValues(f, TopicInboxes, func(rec *kgo.Record) (any, error) { return decodeAny(TopicInboxes, rec) }, func(v any, rec *kgo.Record) *kgo.Record {
		if it, ok := v.(*Item); ok {
			return EncodeItem(topics, it)
		}
		return EncodeStop(topics, v.(*Stop))
	})
}

func FuzzDecodeCheckpoint(f *testing.F) {
	fuzzValues(f, TopicCheckpoints, func(rec *kgo.Record) (any, error) { return DecodeCheckpoint(rec) }, func(v any, rec *kgo.Record) *kgo.Record {
		c := v.(Checkpoint)
		return EncodeCheckpoint(topics, rec.Partition, &c)
	})
}

func FuzzHeaders(f *testing.F) {
	f.Add("ce_id", []byte("x"), "ce_id", []byte("y"))
	f.Add("ce_place", []byte("-1"), "ce_chain", []byte("????"))
	f.Add("ce_cause", []byte("/"), "ce_time", []byte("9999-99-99T99:99:99Z"))
	f.Add("content-type", []byte("application/cloudevents+json"), "", []byte(nil))
	f.Fuzz(func(t *testing.T, k1 string, v1 []byte, k2 string, v2 []byte) {
		for _, x := range examples(t)[:12] {
			rec := *x.rec
			rec.Headers = append(rec.Headers[:len(rec.Headers):len(rec.Headers)], kgo.RecordHeader{Key: k1, Value: v1}, kgo.RecordHeader{Key: k2, Value: v2})
			_, _ = decodeAny(x.topic, &rec)
			rec.Headers = rec.Headers[1:]
			_, _ = decodeAny(x.topic, &rec)
		}
		rec := &kgo.Record{Headers: []kgo.RecordHeader{{Key: k1, Value: v1}, {Key: k2, Value: v2}}}
		var c Chain
		if v, _ := c.Check(rec); v == Valid {
			t.Errorf("expected two headers never to make a valid record, but %q and %q do", v1, v2)
		}
	})
}

func FuzzChainText(f *testing.F) {
	f.Add(Chain{Next: 3, Last: 2, Sum: [32]byte{1}}.String())
	f.Add("1.2.3")
	f.Fuzz(func(t *testing.T, text string) {
		var c, again Chain
		if c.UnmarshalText([]byte(text)) != nil {
			return
		}
		if err := again.UnmarshalText([]byte(c.String())); err != nil || again != c {
			t.Errorf("expected %s, but got %s, %v", c, again, err)
		}
	})
}
