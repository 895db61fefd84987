package schemas

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
)

// outcome is "ok", "refused code field" or "undecodable code field".
func outcome(err error) string {
	var d *DecodeError
	var f *Refusal
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &d):
		return strings.TrimSpace("undecodable " + string(d.Code) + " " + d.Field)
	case errors.As(err, &f):
		return strings.TrimSpace("refused " + string(f.Code) + " " + f.Field)
	}
	return err.Error()
}

func TestParseRequest(t *testing.T) {
	with := func(members string) string {
		return `{"id":"a","organization":"o","type":"import",` + members + `}`
	}
	long := func(n int) string { return strings.Repeat("x", n) }
	for _, c := range []struct{ in, want string }{
		{`{"id":"a","organization":"o","type":"import"}`, "ok"},
		{" \t\r\n{ \"id\" : \"a\" , \"organization\":\"o\",\"type\":\"import\" } \n", "ok"},
		{fullRequest, "ok"},

		// Not JSON, or not ours.
		{``, "undecodable malformed_json"},
		{`{`, "undecodable malformed_json"},
		{`{"id"`, "undecodable malformed_json id"},
		{`{"id":"a"`, "undecodable malformed_json id"},
		{`{"id":"a",}`, "undecodable malformed_json id"},
		{`{"id":"a" "type":"b"}`, "undecodable malformed_json id"},
		{`{"id":"a"} {}`, "undecodable malformed_json"},
		{`{id:"a"}`, "undecodable malformed_json"},
		{`{"id":'a'}`, "undecodable malformed_json id"},
		{`{"id":"a` + "\n" + `"}`, "undecodable malformed_json id"},
		{`{"id":"\x"}`, "undecodable malformed_json id"},
		{`{"id":"\u12g4"}`, "undecodable malformed_json id"},
		{`{"id":"\ud800"}`, "undecodable invalid_utf8 id"},
		{`{"id":"\ud800\u0041"}`, "undecodable invalid_utf8 id"},
		{`{"id":"\udc00"}`, "undecodable invalid_utf8 id"},
		{"{\"id\":\"\xff\"}", "undecodable invalid_utf8 id"},
		{"{\"id\":\"\xed\xa0\x80\"}", "undecodable invalid_utf8 id"},
		{"{\"id\":\"\xc0\xaf\"}", "undecodable invalid_utf8 id"},
		{"\ufeff{}", "refused invalid_type"}, // replaced below: a byte order mark is no JSON
		{`{"id":"a","id":"a"}`, "undecodable duplicate_field id"},
		{`{"id":"a","\u0069d":"a"}`, "undecodable duplicate_field id"},
		{`{"\u0069d":"a","id":"a"}`, "undecodable duplicate_field id"},
		{`{"\u0069d":"a","i\u0064":"a"}`, "undecodable duplicate_field id"},
		{`{"ID":"a"}`, "undecodable unknown_field ID"},
		{with(`"retry":{"maxattempts":1}`), "undecodable unknown_field retry.maxattempts"},
		{with(`"retry":{"max":"1s","max":"1s"}`), "undecodable duplicate_field retry.max"},
		{with(`"data":{"a":1,"a":2}`), "undecodable duplicate_field data"},
		{with(`"data":[{"b":{"a":1,"\u0061":2}}]`), "undecodable duplicate_field data"},
		{with(`"data":{"a":1}, "data":2`), "undecodable duplicate_field data"},
		{with(`"data":01`), "undecodable malformed_json data"},
		{with(`"data":1.`), "undecodable malformed_json data"},
		{with(`"data":.5`), "undecodable malformed_json data"},
		{with(`"data":1e`), "undecodable malformed_json data"},
		{with(`"data":-`), "undecodable malformed_json data"},
		{with(`"data":+1`), "undecodable malformed_json data"},
		{with(`"data":NaN`), "undecodable malformed_json data"},
		{with(`"data":tru`), "undecodable malformed_json data"},
		{with(`"data":[1,]`), "undecodable malformed_json data"},
		{with(`"data":{"a":}`), "undecodable malformed_json data"},
		{with(`"data":{"a"}`), "undecodable malformed_json data"},
		{with(`"data":[1}`), "undecodable malformed_json data"},
		{with(`"data":"` + "\x00" + `"`), "undecodable malformed_json data"},
		{with(`"data":` + strings.Repeat("[", 63) + strings.Repeat("]", 63)), "ok"},
		{with(`"data":` + strings.Repeat("[", 64) + strings.Repeat("]", 64)), "undecodable too_deep data"},
		{with(`"data":` + strings.Repeat("[", 100_000)), "undecodable too_deep data"},
		{with(`"data":` + strings.Repeat(`{"a":`, 100_000)), "undecodable too_deep data"},
		{strings.Repeat("[", 100_000), "undecodable too_deep"},
		{strings.Repeat(" ", MaxRequestBytes+1), "undecodable too_large"},

		// Any other data is the caller's.
		{with(`"data":null`), "ok"},
		{with(`"data":1e999`), "ok"},
		{with(`"data":` + strings.Repeat("9", 10_000)), "ok"},
		{with(`"data":"\u0000\ud83d\ude00"`), "ok"},
		{with(`"data":{}`), "ok"},

		// JSON, but not what a request may be.
		{`[]`, "refused invalid_type"},
		{`null`, "refused invalid_type"},
		{`{}`, "refused required id"},
		{`{"organization":"o","type":"import"}`, "refused required id"},
		{`{"id":"a","type":"import"}`, "refused required organization"},
		{`{"id":"a","organization":"o"}`, "refused required type"},
		{`{"id":"a","organization":"o","type":""}`, "refused required type"},
		{`{"id":"a","organization":"o","type":"Import"}`, "refused invalid_name type"},
		{`{"id":"a","organization":"o","type":"a--b"}`, "refused invalid_name type"},
		{`{"id":"a","organization":"o","type":"` + long(101) + `"}`, "refused invalid_name type"},
		{`{"id":"a","organization":"o","type":"nobody.serves-this"}`, "ok"},
		{`{"id":7,"organization":"o","type":"import"}`, "refused invalid_type id"},
		{`{"id":null,"organization":"o","type":"import"}`, "refused invalid_type id"},
		{`{"id":"` + long(128) + `","organization":"o","type":"import"}`, "ok"},
		{`{"id":"` + long(129) + `","organization":"o","type":"import"}`, "refused too_long id"},
		{`{"id":"a","organization":"` + long(129) + `","type":"import"}`, "refused too_long organization"},
		{with(`"name":"` + long(256) + `"`), "ok"},
		{with(`"name":"` + strings.Repeat("ä", 129) + `"`), "refused too_long name"},
		{with(`"dependencyToken":"` + long(257) + `"`), "refused too_long dependencyToken"},
		{with(`"partitionKey":"` + long(257) + `"`), "refused too_long partitionKey"},
		{with(`"regarding":{"name":"` + long(257) + `"}`), "refused too_long regarding.name"},
		{with(`"name":"a\u0000b"`), "refused invalid_characters name"},
		{with(`"name":"a\nb"`), "refused invalid_characters name"},
		{with(`"name":"a\u007fb"`), "refused invalid_characters name"},
		{with(`"name":"a\u0085b"`), "refused invalid_characters name"},
		{with(`"name":"a\u202eb"`), "refused invalid_characters name"},
		{with(`"name":"a\u2066b"`), "refused invalid_characters name"},
		{with(`"name":"a\u200bb"`), "refused invalid_characters name"},
		{with(`"name":"a\ufeffb"`), "refused invalid_characters name"},
		{with(`"name":"\ud83d\ude00 \u05d0\u0627 שלום"`), "ok"},
		{with(`"correlationId":"\t"`), "refused invalid_characters correlationId"},
		{with(`"onUpstreamFailure":"cancel"`), "ok"},
		{with(`"onUpstreamFailure":"Cancel"`), "refused unknown_value onUpstreamFailure"},
		{with(`"onUpstreamFailure":1`), "refused invalid_type onUpstreamFailure"},
		{with(`"priority":0`), "ok"},
		{with(`"priority":9`), "ok"},
		{with(`"priority":10`), "refused out_of_range priority"},
		{with(`"priority":-1`), "refused out_of_range priority"},
		{with(`"priority":-0`), "ok"},
		{with(`"priority":260`), "refused out_of_range priority"},
		{with(`"priority":99999999999999999999999999`), "refused out_of_range priority"},
		{with(`"priority":1.5`), "refused invalid_type priority"},
		{with(`"priority":1e0`), "refused invalid_type priority"},
		{with(`"priority":"5"`), "refused invalid_type priority"},
		{with(`"depth":2147483648`), "refused out_of_range depth"},
		{with(`"depth":-1`), "refused out_of_range depth"},
		{with(`"postponeUntil":"1601-01-01T00:00:00Z"`), "ok"},
		{with(`"postponeUntil":"9999-12-31T23:59:59.999999999Z"`), "ok"},
		{with(`"postponeUntil":"0001-01-01T00:00:00Z"`), "ok"},
		{with(`"postponeUntil":"0001-01-01T00:00:00+01:00"`), "refused invalid_time postponeUntil"},
		{with(`"postponeUntil":"0000-12-31T00:00:00Z"`), "refused invalid_time postponeUntil"},
		{with(`"postponeUntil":"9999-12-31T23:59:59-01:00"`), "refused invalid_time postponeUntil"},
		{with(`"postponeUntil":"10000-01-01T00:00:00Z"`), "refused invalid_time postponeUntil"},
		{with(`"postponeUntil":"2026-02-30T00:00:00Z"`), "refused invalid_time postponeUntil"},
		{with(`"postponeUntil":"2026-01-01 00:00:00Z"`), "refused invalid_time postponeUntil"},
		{with(`"postponeUntil":"2026-01-01"`), "refused invalid_time postponeUntil"},
		{with(`"postponeUntil":""`), "refused invalid_time postponeUntil"},
		{with(`"postponeUntil":1}`), "undecodable malformed_json"},
		{with(`"postponeUntil":1`), "refused invalid_type postponeUntil"},
		{with(`"timeLimit":"90s"`), "ok"},
		{with(`"timeLimit":"0s"`), "ok"},
		{with(`"timeLimit":"1ns"`), "refused out_of_range timeLimit"},
		{with(`"timeLimit":"-1s"`), "refused out_of_range timeLimit"},
		{with(`"timeLimit":"87601h"`), "refused out_of_range timeLimit"},
		{with(`"timeLimit":"9999999h"`), "refused invalid_duration timeLimit"},
		{with(`"timeLimit":"PT5M"`), "refused invalid_duration timeLimit"},
		{with(`"timeLimit":"5"`), "refused invalid_duration timeLimit"},
		{with(`"timeLimit":5`), "refused invalid_type timeLimit"},
		{with(`"retry":{}`), "ok"},
		{with(`"retry":null`), "refused invalid_type retry"},
		{with(`"retry":{"maxAttempts":0}`), "refused out_of_range retry.maxAttempts"},
		{with(`"retry":{"multiplier":0.5}`), "refused out_of_range retry.multiplier"},
		{with(`"retry":{"multiplier":1e400}`), "refused out_of_range retry.multiplier"},
		{with(`"retry":{"jitter":1.1}`), "refused out_of_range retry.jitter"},
		{with(`"retry":{"jitter":-0.1}`), "refused out_of_range retry.jitter"},
		{with(`"retry":{"initial":"-1s"}`), "refused out_of_range retry.initial"},
		{with(`"retry":{"giveUpAfter":"1 day"}`), "refused invalid_duration retry.giveUpAfter"},
		{with(`"regarding":"x"`), "refused invalid_type regarding"},
		{with(`"regarding":{"id":5}`), "refused invalid_type regarding.id"},
	} {
		if strings.HasPrefix(c.in, "\ufeff") {
			c.want = "undecodable malformed_json"
		}
		q, err := ParseRequest([]byte(c.in), "")
		if got := outcome(err); got != c.want {
			t.Errorf("%.100s: expected %s, but got %s (%v)", c.in, c.want, got, err)
		}
		if err != nil {
			if !strings.Contains(err.Error(), "expected") && !strings.Contains(err.Error(), "twice") && !strings.Contains(err.Error(), "no such") && !strings.Contains(err.Error(), "UTF-8") && !strings.Contains(err.Error(), "surrogate") {
				t.Errorf("%.100s: expected a message that says what was expected, but got %v", c.in, err)
			}
			continue
		}
		fixedPoint(t, q)
	}
}

// What stands in a text where it must not is named as whoever looks for it sees it, not by its first byte.
func TestMessagesShowWholeCharacters(t *testing.T) {
	for in, want := range map[string]string{
		"\ufeff{}":                           "but found a byte order mark",
		"\xff\xfe{\x00}\x00":                 "but found the byte 0xff",
		"{\"organization\":“north”}":         "but found '“'",
		"{\"organization\":\"north\"\u00a0}": `but found '\u00a0'`,
		"{}\u2028":                           `but found '\u2028'`,
		"{'organization':'north'}":           `but found '\''`,
	} {
		if _, err := ParseRequest([]byte(in), ""); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%q: expected a message that ends with %s, but got %v", in, want, err)
		}
	}
}

// fixedPoint checks that parsing what was normalised gives the same request, and the same bytes.
func fixedPoint(t *testing.T, q *operation.Request) {
	t.Helper()
	again, err := ParseRequest(q.Raw, "another id")
	if err != nil {
		t.Errorf("%s: %v", q.Raw, err)
		return
	}
	if !reflect.DeepEqual(again, q) {
		t.Errorf("expected\n%+v, but got\n%+v", q, again)
	}
	if b := AppendRequest(nil, q); !bytes.Equal(b, q.Raw) {
		t.Errorf("expected %s, but got %s", q.Raw, b)
	}
	read, err := ReadRequest(q.Raw)
	if err != nil || !reflect.DeepEqual(read, q) {
		t.Errorf("expected\n%+v, but got\n%+v, %v", q, read, err)
	}
}

func TestRequestIsNormalised(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{"type":"import","organization":"o","id":"a"}`, `{"id":"a","organization":"o","type":"import"}`},
		{`{"id":"a","organization":"o","type":"import","name":"","priority":4,"onUpstreamFailure":"release","timeLimit":"0s","depth":0,"regarding":{}}`, `{"id":"a","organization":"o","type":"import"}`},
		{`{"id":"\u0061\/\"\\","organization":"\u00f6","type":"import"}`, `{"id":"a/\"\\","organization":"ö","type":"import"}`},
		{`{"id":"a","organization":"o","type":"import","data": { "b" : [ 1.50 , "x \" y" ] , "a" : "\u003c" } }`, `{"id":"a","organization":"o","type":"import","data":{"b":[1.50,"x \" y"],"a":"\u003c"}}`},
		{`{"id":"a","organization":"o","type":"import","timeLimit":"90s","postponeUntil":"2026-12-01T08:00:00.1234567+02:00"}`, `{"id":"a","organization":"o","type":"import","postponeUntil":"2026-12-01T06:00:00.123456Z","timeLimit":"1m30s"}`},
		{`{"id":"a","organization":"o","type":"import","retry":{"maxAttempts":2}}`, `{"id":"a","organization":"o","type":"import","retry":{"maxAttempts":2,"initial":"1s","max":"5m","multiplier":2,"jitter":0.2,"giveUpAfter":"0s"}}`},
		{`{"id":"a","organization":"o","type":"import","priority":0,"data":null}`, `{"id":"a","organization":"o","type":"import","priority":0,"data":null}`},
	} {
		q := mustRequest(t, c.in)
		if string(q.Raw) != c.want {
			t.Errorf("%s: expected %s, but got %s", c.in, c.want, q.Raw)
		}
	}

	q := mustRequest(t, fullRequest)
	want := &operation.Request{
		ID: "op-1", Organization: "contoso", Type: "bulk-delete", Name: "Old leads äא", DependencyToken: "account/7",
		OnUpstreamFailure: operation.UpstreamBlock, ExplicitKey: "p-1", Priority: 9,
		PostponeUntil: operation.TimeOf(time.Date(2026, 12, 1, 6, 0, 0, 500_000_000, time.UTC)), TimeLimit: 90 * time.Second,
		Retry: &retry.Policy{MaxAttempts: 7, Initial: 500 * time.Millisecond, Max: 90 * time.Minute, Multiplier: 1.5, Jitter: 0.25, GiveUpAfter: 24 * time.Hour},
		Context: &operation.Context{
			CorrelationID: "c-1", RequestID: "r-1", Depth: 2, MessageName: "Delete", PrimaryEntityType: "lead", RegardingType: "account",
			RegardingID: "7", RegardingName: "A. Datum", OwnerID: "u-1", CallerOrigin: "web", CreatedBy: "u-2",
		},
		Data: []byte(`{"query":"a \"b\" \u003c","n":[1,2.50,-0e1,true,null]}`),
		Raw:  q.Raw,
	}
	if !reflect.DeepEqual(q, want) {
		t.Errorf("expected\n%+v, but got\n%+v", want, q)
	}
}

func TestIDFromTheEvent(t *testing.T) {
	q, err := ParseRequest([]byte(`{"organization":"o","type":"import"}`), "ce-1")
	if err != nil || q.ID != "ce-1" || !bytes.HasPrefix(q.Raw, []byte(`{"id":"ce-1",`)) {
		t.Errorf("expected the event's id, but got %+v, %v", q, err)
	}
	q, err = ParseRequest([]byte(`{"id":"own","organization":"o","type":"import"}`), "ce-1")
	if err != nil || q.ID != "own" {
		t.Errorf("expected the member's id, but got %+v, %v", q, err)
	}
}

func TestDurations(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", time.Second: "1s", 90 * time.Second: "1m30s", 2 * time.Minute: "2m", 90 * time.Minute: "1h30m", 1500 * time.Millisecond: "1.5s",
		250 * time.Millisecond: "250ms", 1500: "1500ns", time.Hour + time.Nanosecond: "1h1ns", -time.Minute: "-1m",
	} {
		if got := string(appendDuration(nil, d)); got != want {
			t.Errorf("expected %s, but got %s", want, got)
		}
		if back, err := time.ParseDuration(want); err != nil || back != d {
			t.Errorf("%s: expected %d, but got %d, %v", want, d, back, err)
		}
	}
}

func TestTimes(t *testing.T) {
	for _, at := range []operation.Time{1, -1, now, firstTime, afterTime - 1, operation.Time(-11_644_473_600_000_000), 999_999, 1_000_000} {
		text := appendTime(nil, at)
		if want := at.Go().Format("2006-01-02T15:04:05.999999Z07:00"); len(text) != 20 && len(text) != 27 || !strings.HasPrefix(string(text), want[:19]) {
			t.Errorf("expected %s, but got %s", want, text)
		}
		if back, ok := parseTime(text); !ok || back != at {
			t.Errorf("%s: expected %d, but got %d", text, at, back)
		}
	}
}

func binaryRecord(typ, id, value string) *kgo.Record {
	return &kgo.Record{Topic: "opstream.requests", Partition: 2, Offset: 17, Key: []byte("contoso/op-1"), Value: []byte(value), Headers: []kgo.RecordHeader{
		{Key: HeaderSpecVersion, Value: []byte("1.0")},
		{Key: HeaderID, Value: []byte(id)},
		{Key: HeaderSource, Value: []byte("/crm")},
		{Key: HeaderType, Value: []byte(typ)},
		{Key: HeaderContentType, Value: []byte("application/json; charset=utf-8")},
	}}
}

func TestDecodeCommand(t *testing.T) {
	const cancel, submit = "opstream.operation.cancel.v1", "opstream.operation.requested.v1"
	valid := func() *kgo.Record { return binaryRecord(cancel, "cmd-1", `{"organization":"contoso","id":"op-1"}`) }
	headers := func(change func(h []kgo.RecordHeader) []kgo.RecordHeader) *kgo.Record {
		rec := valid()
		rec.Headers = change(rec.Headers)
		return rec
	}
	set := func(key, value string) *kgo.Record {
		return headers(func(h []kgo.RecordHeader) []kgo.RecordHeader {
			for i := range h {
				if h[i].Key == key {
					h[i].Value = []byte(value)
				}
			}
			return h
		})
	}
	add := func(key, value string) *kgo.Record {
		return headers(func(h []kgo.RecordHeader) []kgo.RecordHeader {
			return append(h, kgo.RecordHeader{Key: key, Value: []byte(value)})
		})
	}
	for _, c := range []struct {
		name string
		rec  *kgo.Record
		want string
	}{
		{"valid", valid(), "ok"},
		{"no headers", headers(func([]kgo.RecordHeader) []kgo.RecordHeader { return nil }), "undecodable missing_header ce_specversion"},
		{"no id", headers(func(h []kgo.RecordHeader) []kgo.RecordHeader { return append(h[:1:1], h[2:]...) }), "undecodable missing_header ce_id"},
		{"empty id", set(HeaderID, ""), "undecodable missing_header ce_id"},
		{"no source", headers(func(h []kgo.RecordHeader) []kgo.RecordHeader { return append(h[:2:2], h[3:]...) }), "undecodable missing_header ce_source"},
		{"no type", headers(func(h []kgo.RecordHeader) []kgo.RecordHeader { return append(h[:3:3], h[4:]...) }), "undecodable missing_header ce_type"},
		{"no content type", headers(func(h []kgo.RecordHeader) []kgo.RecordHeader { return h[:4] }), "ok"},
		{"other content type", set(HeaderContentType, "text/plain"), "undecodable wrong_content_type content-type"},
		{"specversion 0.3", set(HeaderSpecVersion, "0.3"), "undecodable wrong_specversion ce_specversion"},
		{"doubled id", add(HeaderID, "cmd-1"), "undecodable doubled_header ce_id"},
		{"doubled extension", headers(func(h []kgo.RecordHeader) []kgo.RecordHeader {
			return append(h, kgo.RecordHeader{Key: "ce_x"}, kgo.RecordHeader{Key: "ce_x"})
		}), "undecodable doubled_header ce_x"},
		{"an extension", add("ce_comexampleother", "x"), "ok"},
		{"tracing, doubled and not UTF-8", headers(func(h []kgo.RecordHeader) []kgo.RecordHeader {
			return append(h, kgo.RecordHeader{Key: "traceparent", Value: []byte{0xff}}, kgo.RecordHeader{Key: "traceparent"})
		}), "ok"},
		{"long header", add("ce_subject", strings.Repeat("x", MaxHeaderBytes+1)), "undecodable invalid_header ce_subject"},
		{"header not UTF-8", add("ce_subject", "\xff"), "undecodable invalid_utf8 ce_subject"},
		{"too many headers", headers(func(h []kgo.RecordHeader) []kgo.RecordHeader { return append(h, make([]kgo.RecordHeader, 100)...) }), "undecodable too_many_headers"},
		{"unknown type", set(HeaderType, "opstream.operation.destroy.v1"), "undecodable unknown_type ce_type"},
		{"unknown version", set(HeaderType, "opstream.operation.cancel.v2"), "undecodable unknown_version ce_type"},
		{"a type and something", set(HeaderType, cancel+".v9"), "undecodable unknown_type ce_type"},
		{"no dot", set(HeaderType, "cancel"), "undecodable unknown_type ce_type"},
		{"a report", set(HeaderType, "opstream.attempt.started.v1"), "undecodable wrong_topic ce_type"},
		{"too large", binaryRecord(submit, "x", strings.Repeat(" ", 50<<20)), "undecodable too_large"},
		{"large key", func() *kgo.Record { r := valid(); r.Key = make([]byte, MaxHeaderBytes+1); return r }(), "undecodable too_large key"},
		{"value nil", &kgo.Record{Headers: valid().Headers}, "undecodable malformed_json"},

		{"no organization", binaryRecord(cancel, "c", `{"id":"op-1"}`), "refused required organization"},
		{"no operation", binaryRecord(cancel, "c", `{"organization":"contoso"}`), "refused required id"},
		{"until for cancel", binaryRecord(cancel, "c", `{"organization":"contoso","id":"op-1","until":"2026-01-01T00:00:00Z"}`), "undecodable unknown_field until"},
		{"postpone without until", binaryRecord("opstream.operation.postpone.v1", "c", `{"organization":"contoso","id":"op-1"}`), "refused required until"},
		{"postpone", binaryRecord("opstream.operation.postpone.v1", "c", `{"organization":"contoso","id":"op-1","until":"1970-01-01T00:00:00Z"}`), "ok"},
		{"who with control characters", binaryRecord(cancel, "c", `{"organization":"contoso","id":"op-1","by":{"who":"a\u0007"}}`), "refused invalid_characters by.who"},
		{"a reason of two lines", binaryRecord(cancel, "c", `{"organization":"contoso","id":"op-1","by":{"reason":"a\n\tb\r\n"}}`), "ok"},
		{"reason with control characters", binaryRecord(cancel, "c", `{"organization":"contoso","id":"op-1","by":{"reason":"a\u0000"}}`), "refused invalid_characters by.reason"},
		{"long reason", binaryRecord(cancel, "c", `{"organization":"contoso","id":"op-1","by":{"reason":"`+strings.Repeat("x", 2001)+`"}}`), "refused too_long by.reason"},
		{"retry with other data", binaryRecord("opstream.operation.retry.v1", "c", `{"organization":"contoso","id":"op-1","data":[1, 2]}`), "ok"},
		{"long command id", binaryRecord(cancel, strings.Repeat("x", 129), `{"organization":"contoso","id":"op-1"}`), "refused too_long ce_id"},
	} {
		_, err := DecodeCommand(c.rec)
		if got := outcome(err); got != c.want {
			t.Errorf("%s: expected %s, but got %s (%v)", c.name, c.want, got, err)
		}
		var d *DecodeError
		if errors.As(err, &d) && (d.Topic != c.rec.Topic || d.Partition != c.rec.Partition || d.Offset != c.rec.Offset) {
			t.Errorf("%s: expected the error to say where the record stands, but got %v", c.name, err)
		}
		if err != nil && Reasons[codeOf(err)] == "" {
			t.Errorf("%s: expected a sentence for the code %s, but there is none", c.name, codeOf(err))
		}
	}
}

func codeOf(err error) Code {
	var d *DecodeError
	if errors.As(err, &d) {
		return d.Code
	}
	var f *Refusal
	errors.As(err, &f)
	return f.Code
}

func TestRefusalSaysWhomToAnswer(t *testing.T) {
	for _, c := range []struct {
		rec  *kgo.Record
		want Refusal
	}{
		{binaryRecord("opstream.operation.requested.v1", "ce-1", `{"id":"op-1","organization":"contoso","type":"import","priority":77}`), Refusal{Kind: operation.Submit, Org: "contoso", ID: "op-1", CommandID: "ce-1"}},
		{binaryRecord("opstream.operation.requested.v1", "ce-1", `{"priority":77,"type":"import","organization":"contoso"}`), Refusal{Kind: operation.Submit, Org: "contoso", ID: "ce-1", CommandID: "ce-1"}},
		{binaryRecord("opstream.operation.requested.v1", "ce-1", `{"id":"`+strings.Repeat("x", 200)+`","organization":"con\u0000toso"}`), Refusal{Kind: operation.Submit, CommandID: "ce-1"}},
		{binaryRecord("opstream.operation.pause.v1", "ce-1", `{"by":5,"id":"op-1","organization":"contoso"}`), Refusal{Kind: operation.Pause, Org: "contoso", ID: "op-1", CommandID: "ce-1"}},
	} {
		cmd, err := DecodeCommand(c.rec)
		var got *Refusal
		if !errors.As(err, &got) {
			t.Errorf("%s: expected a refusal, but got %v", c.rec.Value, err)
			continue
		}
		c.want.Code, c.want.Field, c.want.Reason = got.Code, got.Field, got.Reason
		if *got != c.want {
			t.Errorf("%s: expected %+v, but got %+v", c.rec.Value, c.want, *got)
		}
		if cmd.Kind != got.Kind || cmd.Org != got.Org || cmd.ID != got.ID || cmd.CommandID != got.CommandID || cmd.Cause.Offset != 17 {
			t.Errorf("%s: expected the command to say the same, but got %+v", c.rec.Value, cmd)
		}
		if rejection := got.Rejection(); rejection.Code != got.Code || !strings.HasPrefix(rejection.Reason, got.Field+": ") {
			t.Errorf("expected the rejection to name the field, but got %+v", rejection)
		}
	}
}

func TestStructuredMode(t *testing.T) {
	structured := func(value string) *kgo.Record {
		return &kgo.Record{Topic: "opstream.requests", Value: []byte(value), Headers: []kgo.RecordHeader{{Key: HeaderContentType, Value: []byte("application/cloudevents+json; charset=UTF-8")}}}
	}
	const attributes = `"specversion":"1.0","id":"ce-1","source":"/crm","type":"opstream.operation.requested.v1",`
	request := `{"organization":"contoso","type":"import"}`
	for _, c := range []struct{ value, want string }{
		{`{` + attributes + `"data":` + request + `}`, "ok"},
		{`{` + attributes + `"comexample":5,"time":"2026-01-01T00:00:00Z","partitionkey":"contoso/x","datacontenttype":"application/json","data":` + request + `}`, "ok"},
		{`{` + attributes + `"data_base64":"` + base64.StdEncoding.EncodeToString([]byte(request)) + `"}`, "ok"},
		{`{` + attributes + `"subject":null,"time":null,"datacontenttype":null,"partitionkey":null,"comexample":null,"data_base64":null,"data":` + request + `}`, "ok"},
		{`{` + attributes + `"data":null}`, "refused invalid_type"},
		{`{"specversion":null,` + attributes[20:] + `"data":` + request + `}`, "undecodable missing_header ce_specversion"},
		{`{` + attributes + `"subject":nul,"data":` + request + `}`, "undecodable malformed_json subject"},
		{`{` + attributes + `"data_base64":"***"}`, "undecodable invalid_attributes data_base64"},
		{`{` + attributes + `"data_base64":"e30=","data":` + request + `}`, "undecodable invalid_attributes data_base64"},
		{`{` + attributes + `"data":` + request + `,"data_base64":"e30="}`, "undecodable invalid_attributes data_base64"},
		{`{` + attributes + `"id":"x","data":` + request + `}`, "undecodable duplicate_field id"},
		{`{` + attributes + `"x":1,"x":2,"data":` + request + `}`, "undecodable duplicate_field x"},
		{`{` + attributes + `"data":` + request, "undecodable malformed_json data"},
		{`{` + attributes + `"subject":7,"data":` + request + `}`, "undecodable invalid_attributes subject"},
		{`{` + attributes + `"datacontenttype":"text/xml","data":` + request + `}`, "undecodable wrong_content_type content-type"},
		{`{` + attributes[20:] + `"data":` + request + `}`, "undecodable missing_header ce_specversion"},
		{`{` + attributes + `"a":1}`, "undecodable malformed_json"},
		{`[]`, "undecodable invalid_attributes"},
	} {
		cmd, err := DecodeCommand(structured(c.value))
		if got := outcome(err); got != c.want {
			t.Errorf("%s: expected %s, but got %s (%v)", c.value, c.want, got, err)
		}
		if err == nil && (cmd.ID != "ce-1" || cmd.Request == nil || cmd.CommandID != "") {
			t.Errorf("%s: got %+v", c.value, cmd)
		}
	}
	for levels, want := range map[int]string{MaxDepth - 1: "ok", MaxDepth: "undecodable too_deep data"} {
		deep := `{"organization":"contoso","type":"import","data":` + nested(levels) + `}`
		if _, err := DecodeCommand(structured(`{` + attributes + `"data":` + deep + `}`)); outcome(err) != want {
			t.Errorf("data of %d levels: expected %s, as in binary mode, but got %v", levels, want, err)
		}
	}
	many := `{` + attributes
	for i := range 100 {
		many += fmt.Sprintf(`"x%d":1,`, i)
	}
	if _, err := DecodeCommand(structured(many + `"data":1}`)); outcome(err) != "undecodable unknown_field x60" {
		t.Errorf("expected a bound for attributes, but got %v", err)
	}
}

// Not every library says that an event is in structured mode; whoever reads the dead letter must find out what is wrong.
func TestStructuredModeWithoutItsContentType(t *testing.T) {
	for _, contentType := range []string{"", "application/json"} {
		rec := &kgo.Record{Topic: "opstream.requests", Value: []byte(`{"specversion":"1.0","id":"ce-1"}`)}
		if contentType != "" {
			rec.Headers = []kgo.RecordHeader{{Key: HeaderContentType, Value: []byte(contentType)}}
		}
		if _, err := DecodeCommand(rec); outcome(err) != "undecodable missing_header ce_specversion" || !strings.Contains(err.Error(), ContentStructured) {
			t.Errorf("content type %q: expected an error that names %s, but got %v", contentType, ContentStructured, err)
		}
	}
}

func TestKeyOf(t *testing.T) {
	submit := EncodeRequest(topics, mustRequest(t, `{"id":"op-1","organization":"contoso","type":"import","dependencyToken":"account/7"}`))
	if string(submit.Key) != "contoso/account/7" {
		t.Errorf("expected the token's key, but got %s", submit.Key)
	}
	submit.Key = []byte("whatever a foreign producer thinks")
	cancel := func(key, attribute string) *kgo.Record {
		rec := binaryRecord("opstream.operation.cancel.v1", "c", `{"organization":"contoso","id":"op-1"}`)
		rec.Key = []byte(key)
		if attribute != "" {
			rec.Headers = append(rec.Headers, kgo.RecordHeader{Key: HeaderPartitionKey, Value: []byte(attribute)})
		}
		return rec
	}
	for _, c := range []struct {
		rec  *kgo.Record
		want string
	}{
		{submit, "contoso/account/7"},
		{cancel("contoso/t", ""), "contoso/t"},
		{cancel("contoso/t", "contoso/u"), "contoso/t"},
		{cancel("", "contoso/u"), "contoso/u"},
		{cancel("fabrikam/t", "fabrikam/t"), "contoso/op-1"},
		{cancel("contoso", ""), "contoso/op-1"},
		{cancel("", ""), "contoso/op-1"},
		{&kgo.Record{
			Topic:   "opstream.requests",
			Value:   []byte(`{"specversion":"1.0","id":"c","source":"/crm","type":"opstream.operation.cancel.v1","partitionkey":"contoso/u","data":{"organization":"contoso","id":"op-1"}}`),
			Headers: []kgo.RecordHeader{{Key: HeaderContentType, Value: []byte(ContentStructured)}},
		}, "contoso/u"},
	} {
		cmd, err := DecodeCommand(c.rec)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(KeyOf(c.rec, &cmd)); got != c.want {
			t.Errorf("expected %s, but got %s", c.want, got)
		}
		if got := ExpectedPartition(c.rec, &cmd, 12); got != PartitionFor([]byte(c.want), 12) {
			t.Errorf("%s: got partition %d", c.want, got)
		}
		inner, err := UnwrapRequest(WrapRequest(c.rec))
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeCommand(inner)
		if err != nil || !reflect.DeepEqual(again, cmd) || string(KeyOf(inner, &again)) != c.want {
			t.Errorf("expected a forwarded record to mean the same as %+v, but got %+v, %v", cmd, again, err)
		}
	}
}

func TestSubmitWithACommandOfItsOwn(t *testing.T) {
	q := mustRequest(t, smallRequest)
	rec := EncodeCommand(topics, &operation.Command{Kind: operation.Submit, Request: q, CommandID: "cmd-9"}, nil)
	c, err := DecodeCommand(rec)
	if err != nil || c.CommandID != "cmd-9" || c.ID != "op-2" {
		t.Errorf("expected command cmd-9 for op-2, but got %+v, %v", c, err)
	}
}

func TestDecodeReport(t *testing.T) {
	report := func(typ, value string) *kgo.Record {
		rec := binaryRecord("opstream.attempt."+typ+".v1", "x", value)
		rec.Topic = topics.Reports()
		return rec
	}
	const who = `"organization":"contoso","id":"op-1","attempt":1,"session":"w-1"`
	big := func(n int) string { return `"` + strings.Repeat("x", n) + `"` }
	for _, c := range []struct{ typ, value, want string }{
		{"succeeded", `{` + who + `}`, "ok"},
		{"succeeded", `{` + who + `,"result":` + big(MaxResultBytes-2) + `}`, "ok"},
		{"succeeded", `{` + who + `,"result":` + big(MaxResultBytes-1) + `}`, "refused too_long result"},
		{"succeeded", `{` + who + `,"result":{"a":1,"a":1}}`, "undecodable duplicate_field result"},
		{"succeeded", `{` + who + `,"checkpoint":1}`, "ok"},
		{"returned", `{` + who + `,"checkpoint":` + big(MaxCheckpointBytes) + `}`, "refused too_long checkpoint"},
		{"started", `{` + who + `}`, "refused required startedAt"},
		{"failed", `{` + who + `}`, "refused required error"},
		{"failed", `{` + who + `,"error":{"class":"sometimes"}}`, "refused unknown_value error.class"},
		{"failed", `{` + who + `,"error":{"errorCode":2147483648}}`, "refused out_of_range error.errorCode"},
		{"failed", `{` + who + `,"error":{"message":` + big(MaxMessageChars+5) + `}}`, "ok"},
		{"yielded", `{` + who + `,"until":"soon"}`, "refused invalid_time until"},
		{"yielded", `{` + who + `,"event":"\u0000"}`, "refused invalid_characters event"},
		{"stopped", `{"organization":"contoso","id":"op-1","attempt":0,"session":"w-1"}`, "refused out_of_range attempt"},
		{"stopped", `{"organization":"contoso","id":"op-1","session":"w-1"}`, "refused required attempt"},
		{"stopped", `{"organization":"contoso","id":"op-1","attempt":1}`, "refused required session"},
		{"ended", `{` + who + `}`, "undecodable unknown_type ce_type"},
	} {
		cmd, err := DecodeReport(report(c.typ, c.value))
		if got := outcome(err); got != c.want {
			t.Errorf("%s %.120s: expected %s, but got %s (%v)", c.typ, c.value, c.want, got, err)
		}
		if cmd.Failure != nil && len(cmd.Failure.Message) > MaxMessageChars {
			t.Errorf("expected a text of at most %d characters, but got %d", MaxMessageChars, len(cmd.Failure.Message))
		}
	}
	wide := strings.Repeat("ä", MaxMessageChars+1)
	if got := cut(wide, MaxMessageChars); got != wide[:2*MaxMessageChars] {
		t.Errorf("expected %d characters, but got %d bytes", MaxMessageChars, len(got))
	}
}

func TestCheckJSON(t *testing.T) {
	for in, want := range map[string]string{
		`{"a":1}`: "ok", ` [1] `: "ok", ``: "undecodable malformed_json", `{"a":1,"a":1}`: "undecodable duplicate_field", `"` + strings.Repeat("x", 20) + `"`: "refused too_long",
		`1 1`: "undecodable malformed_json", "\"\xff\"": "undecodable invalid_utf8", strings.Repeat("[", 70): "undecodable too_deep",
	} {
		if got := outcome(CheckJSON([]byte(in), 20)); got != want {
			t.Errorf("%s: expected %s, but got %s", in, want, got)
		}
	}
}

// What we write is JSON in UTF-8, whatever text we are given.
func TestStringsAreAlwaysValid(t *testing.T) {
	for in, want := range map[string]string{
		"a\"\\\n\r\t\x01\x1f/é😀\u2028": `"a\"\\\n\r\t\u0001\u001f/é😀` + "\u2028" + `"`, "\xff\xfea\xe2\x82": "\"\ufffd\ufffda\ufffd\ufffd\"", "": `""`, "\ufffd": "\"\ufffd\"",
	} {
		if got := string(appendString(nil, in)); got != want {
			t.Errorf("%q: expected %s, but got %s", in, want, got)
		}
		if got := string(appendString(nil, []byte(in))); got != want {
			t.Errorf("%q: expected %s, but got %s", in, want, got)
		}
	}
}

func TestHostileRequestsFailFast(t *testing.T) {
	for _, in := range [][]byte{
		bytes.Repeat([]byte("["), 50<<20),
		bytes.Repeat([]byte(`{"data":`), 100_000),
		append([]byte(`{"data":`), bytes.Repeat([]byte("["), 100_000)...),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := ParseRequest(in, ""); err == nil {
			t.Error("expected an error")
		}
		runtime.ReadMemStats(&after)
		allocated := after.TotalAlloc - before.TotalAlloc
		if allocated > 16<<10 {
			t.Errorf("%.10s (%d bytes): expected little allocation, but got %d bytes", in, len(in), allocated)
		}
	}
}

func TestDeadLetter(t *testing.T) {
	rec := binaryRecord("x", "y", "{")
	out := DeadLetter(topics, rec, MalformedJSON, "because \xff", "scheduler/1", now)
	if out.Topic != "opstream.deadletter" || string(out.Key) != string(rec.Key) || string(out.Value) != "{" || len(rec.Headers) != 5 {
		t.Errorf("expected the record as it came, but got %+v", out)
	}
	for key, want := range map[string]string{
		HeaderID: "y", HeaderDeadReason: "because ?", HeaderDeadCode: "malformed_json", HeaderDeadBy: "scheduler/1", HeaderDeadTopic: "opstream.requests",
		HeaderDeadPartition: "2", HeaderDeadOffset: "17", HeaderDeadAt: "2026-11-23T09:30:00.123456Z",
	} {
		if h := header(out, key); h == nil || string(h.Value) != want {
			t.Errorf("%s: expected %s, but got %v", key, want, h)
		}
	}
	out.Offset = 5
	again := DeadLetter(topics, out, TooLarge, "again", "me", 0)
	if h := header(again, HeaderDeadCode); string(h.Value) != "too_large" || header(again, HeaderDeadAt) != nil || header(again, HeaderDeadCut) != nil {
		t.Errorf("expected new headers only, but got %v", again.Headers)
	}
	huge := &kgo.Record{Key: make([]byte, 1<<20), Value: make([]byte, 50<<20), Headers: []kgo.RecordHeader{{Key: "a", Value: make([]byte, 1<<20)}, {Key: "b"}}}
	out = DeadLetter(topics, huge, TooLarge, strings.Repeat("x", 1<<20), "me", 0)
	size := len(out.Key) + len(out.Value)
	for _, h := range out.Headers {
		size += len(h.Key) + len(h.Value)
	}
	if size > MaxBatchBytes/2+1<<20 || header(out, HeaderDeadCut) == nil {
		t.Errorf("expected a bounded record that says so, but got %d bytes", size)
	}
}
