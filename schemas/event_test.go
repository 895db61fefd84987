package schemas

import (
	"reflect"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
)

// A field that is added to events or commands and not to their codecs fails here.
func TestExamplesUseEveryFieldOfTheDomain(t *testing.T) {
	used := map[string]bool{}
	mark := func(v reflect.Value) {
		for i := range v.NumField() {
			if !v.Field(i).IsZero() {
				used[v.Type().Name()+"."+v.Type().Field(i).Name] = true
			}
		}
	}
	for _, e := range events(t) {
		mark(reflect.ValueOf(e))
	}
	for _, x := range examples(t) {
		if c, ok := x.want.(operation.Command); ok {
			mark(reflect.ValueOf(c))
		}
	}
	inside := map[string]bool{"Command.Upstream": true, "Command.Policy": true} // what the engine adds; never on the wire
	for _, v := range []reflect.Type{reflect.TypeFor[operation.Event](), reflect.TypeFor[operation.Command]()} {
		for i := range v.NumField() {
			if name := v.Name() + "." + v.Field(i).Name; !used[name] && !inside[name] {
				t.Errorf("expected a message that has %s, but there is none", name)
			}
		}
	}
}

func TestCheckEventFindsWhatWouldBeLost(t *testing.T) {
	e := operation.Event{Kind: operation.Dispatched, Attempt: 1, Session: "w", Reason: "why"}
	if err := CheckEvent(&e); err == nil || !strings.Contains(err.Error(), "reason") {
		t.Errorf("expected an error that names the field, but got %v", err)
	}
	e = operation.Event{Kind: operation.Dispatched, Attempt: 1}
	if err := CheckEvent(&e); err == nil || !strings.Contains(err.Error(), "session") {
		t.Errorf("expected an error that names the field, but got %v", err)
	}
}

func TestOwnDecodersAreStrict(t *testing.T) {
	byType := map[string]*kgo.Record{}
	for _, x := range examples(t) {
		if byType[x.topic+" "+x.typ] == nil {
			byType[x.topic+" "+x.typ] = x.rec
		}
	}
	for name, rec := range byType {
		topic, _, _ := strings.Cut(name, " ")
		decode := func(value string) error {
			changed := *rec
			changed.Value = []byte(value)
			_, err := decodeAny(topic, &changed)
			return err
		}
		value := string(rec.Value)
		more := ","
		if value == "{}" {
			more = ""
		}
		if got := outcome(decode(strings.TrimSuffix(value, "}") + more + `"later":1}`)); topic == TopicRequests && got != "undecodable unknown_field later" {
			t.Errorf("%s: expected an unknown member to be refused, but got %s", name, got)
		}
		if err := decode(strings.TrimSuffix(value, "}")); err == nil {
			t.Errorf("%s: expected half an object to be refused", name)
		}
		if err := decode("null"); err == nil {
			t.Errorf("%s: expected null to be refused", name)
		}
		if err := decode(value + value); err == nil {
			t.Errorf("%s: expected two objects to be refused", name)
		}
		// Without a member that must be there.
		m := index[topic][strings.Fields(name)[1]]
		for _, f := range m.Fields {
			member, required := strings.CutSuffix(f, "!")
			if !required {
				continue
			}
			without := withoutMember(t, rec.Value, member)
			if got := outcome(decode(without)); got != "undecodable missing_field "+member && got != "refused required "+member {
				t.Errorf("%s: expected %s to be missed, but got %s in %s", name, member, got, without)
			}
		}
	}
}

// withoutMember returns the object without one of its members, and without a comma too many.
func withoutMember(t *testing.T, value []byte, member string) string {
	r := newReader(value, maxOwnBytes)
	out := ""
	for o := r.object(); r.next(o); {
		name, raw := string(r.name), string(r.raw())
		if name != member {
			out += `,"` + name + `":` + raw
		}
	}
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
	return "{" + strings.TrimPrefix(out, ",") + "}"
}

func TestDecodeEventHeaders(t *testing.T) {
	e := operation.Event{Kind: operation.Deleted, Org: "o", ID: "i", At: now, Cause: operation.Cause{Topic: TopicRequests, Offset: 1}}
	for _, c := range []struct{ key, value, want string }{
		{HeaderTime, "yesterday", "undecodable invalid_header ce_time"},
		{HeaderTime, "", "undecodable invalid_header ce_time"},
		{HeaderCause, "requests", "undecodable invalid_header ce_cause"},
		{HeaderCause, "/5", "undecodable invalid_header ce_cause"},
		{HeaderCause, "requests/", "undecodable invalid_header ce_cause"},
		{HeaderCause, "requests/x", "undecodable invalid_header ce_cause"},
		{HeaderCause, "", "ok"},
		{HeaderType, "opstream.attempt.started.v1", "undecodable wrong_topic ce_type"},
		{HeaderType, "opstream.operation.deleted.v7", "undecodable unknown_version ce_type"},
		{HeaderType, "opstream.operation.dispatched.v1", "undecodable missing_field attempt"},
		{HeaderSubject, strings.Repeat("x", 2000), "undecodable invalid_header ce_subject"},
	} {
		rec := EncodeEvent(&e, []byte("o/i"), 1)
		new(Chain).Seal(rec)
		header(rec, c.key).Value = []byte(c.value)
		if _, err := DecodeEvent(rec); outcome(err) != c.want {
			t.Errorf("%s=%.20q: expected %s, but got %v", c.key, c.value, c.want, err)
		}
	}
	unsealed := EncodeEvent(&e, nil, 1)
	if _, err := DecodeEvent(unsealed); outcome(err) != "undecodable missing_header ce_id" {
		t.Errorf("expected a record that nobody sealed to be refused, but got %v", err)
	}
}
