package main

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/schemas"
)

// TestBadInputOverHTTP sends the whole service what clumsy and hostile clients send. Each is answered with a status, a code,
// whose fault it is and what to do, and the service goes on.
func TestBadInputOverHTTP(t *testing.T) {
	h := newHostileSender(t)
	const one = "/v1/organizations/bad/operations/"
	typed := func(contentType string, more ...string) http.Header {
		header := http.Header{"Content-Type": {contentType}}
		for i := 0; i < len(more); i += 2 {
			header[more[i]] = append(header[more[i]], more[i+1])
		}
		return header
	}
	filled := func(prefix string, size int) string { // a body of exactly size bytes
		return prefix + strings.Repeat("x", size-len(prefix)-2) + `"}`
	}
	many := func(s string, n int) string { return strings.Repeat(s, n) }
	if status, _, body := h.http("POST", "/v1/operations", typed("application/json", "Prefer", "wait=10"), with("done", "")); status != 200 {
		t.Fatalf("expected the first operation to succeed, but got %d: %s", status, body)
	}
	for _, c := range []struct {
		method, path string
		header       http.Header
		body         string
		status       int
		code         string
	}{
		{"GET", "/v1/operations?limit=1e9", nil, "", 400, "invalid_parameter"},
		{"GET", "/v1/operations?limit=-1", nil, "", 400, "invalid_parameter"},
		{"GET", "/v1/operations?limit=99999999999999999999", nil, "", 400, "invalid_parameter"},
		{"GET", "/v1/operations?limit=", nil, "", 400, "invalid_parameter"},
		{"GET", "/v1/counts?organization=", nil, "", 400, "invalid_parameter"},
		{"GET", "/v1/events?organization=", nil, "", 400, "invalid_parameter"},
		{"GET", "/v1/operations?cursor=AAAA", nil, "", 400, "invalid_cursor"},
		{"GET", "/v1/operations?cursor=" + many("A", 35), nil, "", 400, "invalid_cursor"},
		{"GET", "/v1/operations?cursor=%00", nil, "", 400, "invalid_parameter"},
		{"GET", "/v1/operations?status=%FF", nil, "", 400, "invalid_parameter"},
		{"GET", "/v1/operations?status=ready,no", nil, "", 400, "invalid_parameter"},
		{"GET", "/v1/operations?type=-1", nil, "", 400, "invalid_parameter"},
		{"GET", "/v1/operations?a=%zz", nil, "", 400, "invalid_request"},
		{"GET", "/v1/operations?;", nil, "", 400, "invalid_request"},
		{"GET", "/v1/operations?organization=a&organization=b", nil, "", 400, "invalid_parameter"},
		{"GET", "/v1/operations?createdAfter=2016-12-31T23:59:60Z", nil, "", 400, "invalid_parameter"},
		{"GET", "/v1/operations?createdAfter=1601-01-01T00:00:00Z&createdBefore=9999-12-31T23:59:59Z", nil, "", 200, ""},
		{"GET", "/v1/operations?organization=" + many("%41", 5000), nil, "", 200, ""},
		{"GET", "/v1/operations?type=" + many("a,", 4000) + "a", nil, "", 200, ""},
		{"GET", "/v1/operations?" + many("a", 20_000), nil, "", 413, "too_large"},
		{"GET", "/v1/operations?after=0-99999999999999999999", nil, "", 400, "invalid_parameter"},
		{"GET", "/v1/operations?after=" + many("0-1,", 2000) + "0-1", nil, "", 400, "invalid_parameter"},
		{"GET", "/v1/operations?after=0-9223372036854775807", http.Header{"Prefer": {"wait=0"}}, "", 503, "read_side_behind"},
		{"GET", one + "%FF", nil, "", 400, "invalid_parameter"},
		{"GET", one + "%00", nil, "", 400, "invalid_parameter"},
		{"GET", one + many("x", 129), nil, "", 400, "invalid_parameter"},
		{"GET", one + many("x", 20_000), nil, "", 400, "invalid_parameter"},
		{"GET", one + "a%2Fb", nil, "", 404, "not_found"},
		{"GET", one + "%2E%2E", nil, "", 404, "not_found"},
		{"GET", one, nil, "", 404, "no_such_path"},
		{"GET", "//v1//operations", nil, "", 404, "no_such_path"},
		{"GET", "/v1/organizations//operations/x", nil, "", 404, "no_such_path"},
		{"GET", "/../../etc/passwd", nil, "", 404, "no_such_path"},
		{"GET", "/assets/..%2f..%2fetc%2fpasswd", nil, "", 404, "no_such_path"},
		{"GET", "/schemas/..%2F..%2Fx", nil, "", 404, "no_such_path"},
		{"GET", "/problems/%3Cscript%3E", nil, "", 404, "no_such_problem"},
		{"GET", one + "x/history?cursor=-1", nil, "", 400, "invalid_cursor"},
		{"GET", "/v1/events?id=x", nil, "", 400, "invalid_parameter"},
		{"GET", "/v1/status?x=1", nil, "", 400, "unknown_parameter"},
		{"BREW", "/v1/operations", nil, "", 405, "method_not_allowed"},
		{"TRACE", "/v1/operations", nil, "", 405, "method_not_allowed"},

		{"POST", "/v1/operations", typed("text/plain"), "{}", 415, "unsupported_media_type"},
		{"POST", "/v1/operations", typed("application/json; charset=latin1"), "{}", 415, "unsupported_media_type"},
		{"POST", "/v1/operations", typed("application/json", "Content-Encoding", "gzip"), "{}", 415, "unsupported_media_type"},
		{"POST", "/v1/operations", typed("application/json", "Idempotency-Key", "a", "Idempotency-Key", "b"), "{}", 400, "invalid_parameter"},
		{"POST", "/v1/operations", typed("application/json", "Idempotency-Key", many("k", 200)), with("x", ""), 400, "invalid_parameter"},
		{"POST", "/v1/operations", typed("application/json", "Idempotency-Key", "\u202e"), with("", ""), 400, "invalid_characters"},
		{"POST", "/v1/operations", typed("application/json", "Idempotency-Key", "y"), with("x", ""), 400, "invalid_parameter"},
		{"POST", "/v1/operations", typed("application/json", "Sec-Fetch-Site", "cross-site"), with("x", ""), 403, "cross_origin"},
		{"POST", "/v1/operations", typed("application/json"), "", 400, "malformed_json"},
		{"POST", "/v1/operations", typed("application/json"), "\ufeff{}", 400, "malformed_json"},
		{"POST", "/v1/operations", typed("application/json"), with("x", "")[:10], 400, "malformed_json"},
		{"POST", "/v1/operations", typed("application/json"), with("x", "") + "{}", 400, "malformed_json"},
		{"POST", "/v1/operations", typed("application/json"), with("x", `"data":`+many("[", 100_000)), 400, "too_deep"},
		{"POST", "/v1/operations", typed("application/json"), with("x", `"name":"\ud800"`), 400, "invalid_utf8"},
		{"POST", "/v1/operations", typed("application/json"), with("x", "\"name\":\"\xff\""), 400, "invalid_utf8"},
		{"POST", "/v1/operations", typed("application/json"), with("x", `"id":"y"`), 400, "duplicate_field"},
		{"POST", "/v1/operations", typed("application/json"), with("x", `"Name":"y"`), 400, "unknown_field"},
		{"POST", "/v1/operations", typed("application/json"), with("x", `"priority":1e400`), 400, "invalid_type"},
		{"POST", "/v1/operations", typed("application/json"), with("x", `"priority":99999999999999999999`), 400, "out_of_range"},
		{"POST", "/v1/operations", typed("application/json"), with(many("i", 129), ""), 400, "too_long"},
		{"POST", "/v1/operations", typed("application/json"), with("a\u202eb", ""), 400, "invalid_characters"},
		{"POST", "/v1/operations", typed("application/json"), `null`, 400, "invalid_type"},
		// Both are below the limit of a body, but the scheduler would not take what is made of them.
		{"POST", "/v1/operations", typed("application/json"), filled(`{"organization":"bad","type":"noop","retry":{},"data":"`, api.BodyMax), 413, "too_large"},
		{"POST", one + "done/retry", typed("application/json"), filled(`{"data":"`, api.BodyMax), 413, "too_large"},
		{"POST", one + "done/cancel?dependencyToken=" + many("t", 10_000), typed("application/json"), `{}`, 400, "invalid_parameter"},
		{"POST", one + "done/cancel?partitionKey=%FF", typed("application/json"), `{}`, 400, "invalid_parameter"},
		{"POST", one + "a%E2%80%AEb/cancel", typed("application/json"), `{}`, 400, "invalid_characters"},
		{"POST", one + "done/cancel", typed("application/json"), `{"by":"a","by":"b"}`, 400, "invalid_request"},
		{"POST", one + "done/cancel", typed("application/json"), `{"By":"a"}`, 400, "invalid_request"},
		{"POST", one + "done/cancel", typed("application/json"), `{"by":"\ud800"}`, 400, "invalid_request"},
		{"POST", one + "done/cancel", typed("application/json"), `{"by":"\u202e"}`, 400, "invalid_characters"},
		{"POST", one + "done/cancel", typed("application/json"), `{"reason":"two\nlines"}`, 409, "already_done"},
		{"POST", one + "done/cancel", typed("application/json"), `{} {}`, 400, "invalid_request"},
		{"POST", one + "done/cancel", typed("application/json"), many("[", 100_000), 400, "invalid_request"},
		{"POST", one + "done/postpone", typed("application/json"), `{"until":"2016-12-31T23:59:60Z"}`, 400, "invalid_request"},
		{"POST", one + "done/postpone", typed("application/json"), `{"until":"9999-12-31T23:59:59Z"}`, 409, "already_done"},
		{"POST", one + "nobody/cancel", typed("application/json"), `{}`, 404, "not_found"},
		{"DELETE", one + "done?by=%00", nil, "", 400, "invalid_parameter"},
		{"DELETE", one + "done", typed("application/json"), "body", 400, "invalid_request"},
		{"POST", "/v1/operations:batch", typed("application/json"), "{}", 415, "unsupported_media_type"},
		{"POST", "/v1/operations", typed("application/json", "Prefer", `wait=99999999999999999999, wait=-1; wait="x"`), with("preferred", ""), 202, ""},
		{"POST", "/v1/operations", typed("application/json"), filled(with("largest", `"data":"`)[:len(with("largest", `"data":"`))-1], api.BodyMax), 202, ""},
	} {
		status, header, body := h.http(c.method, c.path, c.header, c.body)
		name := fmt.Sprintf("%s %.80s %.60s", c.method, c.path, c.body)
		if status != c.status {
			t.Errorf("%s: expected %d, but got %d: %.300s", name, c.status, status, body)
			continue
		}
		if c.code == "" {
			continue
		}
		p := problem(t, body)
		kind, known := api.KindOf(p.Code)
		if string(p.Code) != c.code || p.Detail == "" || p.Next == "" || p.Fault == "" || !known || kind.Status != status || header.Get("Content-Type") != api.ProblemType {
			t.Errorf("%s: expected %s, a detail, a fault and what to do, but got %.400s", name, c.code, body)
		}
		shows(t, strings.NewReplacer("\t", "").Replace(p.Detail))
	}

	file := strings.Join([]string{
		"\xff", "", "[]", "null", "{}\r", with("b1", ""), with("b1", `"priority":1`), many("[", 100_000), many("x", 3<<20), with("b2", ""),
	}, "\n")
	_, _, body := h.http("POST", "/v1/operations:batch", typed("application/jsonl"), file)
	var codes []string
	for _, a := range lines[api.BatchLine](t, string(body)) {
		switch {
		case a.Problem != nil:
			codes = append(codes, fmt.Sprint(a.Line, " ", a.Problem.Code))
		case a.End == nil:
			codes = append(codes, fmt.Sprint(a.Line, " accepted"))
		}
	}
	want := "1 malformed_json, 3 invalid_type, 4 invalid_type, 5 required, 6 accepted, 7 key_reused, 8 too_deep, 9 too_large, 10 accepted"
	if got := strings.Join(codes, ", "); got != want {
		t.Errorf("expected the lines of the batch to be answered with\n%s, but got\n%s", want, got)
	}
	for p := range int32(hostilePartitions) {
		h.follow(p)
	}
	h.settle()
}

// TestOneIDTwice: a request under an id that is known is answered by the first, whichever way either came, and also when the
// first has ended; another body under the id is refused.
func TestOneIDTwice(t *testing.T) {
	h := newHostileSender(t)
	json := http.Header{"Content-Type": {"application/json"}, "Prefer": {"wait=10"}}
	over := map[string]func(body string) string{
		"HTTP": func(body string) string {
			status, _, answer := h.http("POST", "/v1/operations", json, body)
			if status >= 400 {
				return string(problem(t, answer).Code)
			}
			if strings.Contains(string(answer), `"unchanged":true`) {
				return "unchanged"
			}
			return "requested"
		},
		"Kafka": func(body string) string {
			id := body[strings.Index(body, `"id":"`)+6:]
			rec := binaryMode(id[:strings.Index(id, `"`)], body)
			h.put(rec)
			h.follow(rec.Partition)
			h.settle() // what came before the good one is decided
			return strings.TrimPrefix(h.ends()[place0(rec, h.topics)], "rejected ")
		},
	}
	for _, first := range []string{"HTTP", "Kafka"} {
		for _, second := range []string{"HTTP", "Kafka"} {
			id := "twice-" + first + "-" + second
			got := strings.Join([]string{
				over[first](with(id, "")), over[second](with(id, "")), over[second](with(id, `"priority":1`)), over[second](" " + with(id, "") + "\n"),
			}, ", ")
			if want := "requested, unchanged, key_reused, unchanged"; got != want {
				t.Errorf("%s, then %s: expected %s, but got %s", first, second, want, got)
			}
			live := strings.Replace(with(id+"-live", ""), `"noop"`, `"nobodys"`, 1)
			json["Prefer"] = nil
			got = strings.Join([]string{
				over[first](live), over[second](live), over[second](strings.Replace(live, "nobodys", "noop", 1)),
			}, ", ")
			json["Prefer"] = []string{"wait=10"}
			if want := "requested, unchanged, key_reused"; got != want {
				t.Errorf("%s, then %s, still live: expected %s, but got %s", first, second, want, got)
			}
		}
	}

	// One event of a sender may ask for several operations; and a sender that was refused may mend its request and send it under
	// the same event id.
	for _, c := range []struct{ id, more, want string }{
		{"several-1", "", "requested"},
		{"several-2", "", "requested"},
		{"several-2", "", "unchanged"},
		{"several-3", `"priority":99`, "rejected out_of_range"},
		{"several-3", "", "requested"},
	} {
		rec := binaryMode(c.id, with(c.id, c.more), head("ce_id", "crm-event-1"))
		rec.Partition = 0
		rec.Value = []byte(strings.TrimSuffix(string(rec.Value), "}") + `,"partitionKey":"` + keyOn(0) + `"}`)
		h.put(rec)
		h.follow(0)
		h.settle()
		if got := h.ends()[place0(rec, h.topics)]; got != c.want {
			t.Errorf("%s %s: expected %s, but got %s", c.id, c.more, c.want, got)
		}
	}

	// A command that was refused may be given again under its id when it has become possible.
	resume := func() string {
		status, _, body := h.http("POST", "/v1/organizations/bad/operations/twice-HTTP-HTTP-live/resume", http.Header{"Idempotency-Key": {"again"}}, "")
		return fmt.Sprint(status, " ", strings.Contains(string(body), `"unchanged":true`))
	}
	refused := resume()
	h.http("POST", "/v1/organizations/bad/operations/twice-HTTP-HTTP-live/pause", nil, "")
	if got := strings.Join([]string{refused, resume(), resume()}, ", "); got != "409 false, 200 false, 200 true" {
		t.Errorf("expected a refusal, an effect and then no further effect, but got %s", got)
	}
}

// keyOn is a partition key of the organization bad on a partition.
func keyOn(partition int32) string {
	for i := 0; ; i++ {
		key := fmt.Sprint("key-", i)
		if schemas.PartitionFor([]byte("bad/"+key), hostilePartitions) == partition {
			return key
		}
	}
}

// TestOneIDWithTwoKeys writes down what an id does not do: it names an operation within the partition of its token or key. A
// sender that uses it again with another token asks for another operation. Both are done, both are in lists and counts, and
// one is shown for the id; the tables stay what the journal says.
func TestOneIDWithTwoKeys(t *testing.T) {
	h := newHostileSender(t)
	for p := range int32(2) {
		status, _, body := h.http("POST", "/v1/operations", http.Header{"Content-Type": {"application/json"}, "Prefer": {"wait=10"}},
			with("both", `"dependencyToken":"`+keyOn(p)+`"`))
		if status != 200 || !strings.Contains(string(body), `"event":"requested"`) {
			t.Fatalf("expected it to be done, but got %d: %s", status, body)
		}
	}
	var list api.List
	if err := h.json("/v1/operations?organization=bad", &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Operations) != 2 || list.Operations[0].Status != operation.StatusSucceeded.String() {
		t.Errorf("expected both in the list, but got %+v", list.Operations)
	}
	var one api.Operation
	if err := h.json("/v1/organizations/bad/operations/both", &one); err != nil || one.DependencyToken != keyOn(1) {
		t.Errorf("expected the later one to be shown for the id, but got %+v, %v", one, err)
	}
	// By its token, either can be steered.
	for p := range int32(2) {
		status, _, body := h.http("DELETE", "/v1/organizations/bad/operations/both?dependencyToken="+url.QueryEscape(keyOn(p)), nil, "")
		if status != 200 {
			t.Errorf("expected to delete the one of %s, but got %d: %s", keyOn(p), status, body)
		}
	}
}
