package command_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/internal/api/apitest"
	"github.com/opstream/opstream/producers/command"
)

// setup is a service over a journal in memory.
type setup struct {
	journal  *journal
	tables   *tables
	overload time.Duration
	contract *apitest.Contract
	h        http.Handler
}

func newSetup(t *testing.T) *setup {
	s := &setup{journal: newJournal(), contract: apitest.Load(t, "command")}
	s.tables = &tables{journal: s.journal}
	n := 0
	s.h = s.contract.Handler(t, command.Routes(command.Config{
		Journal: s.journal, Locator: s.tables, Effects: s.tables,
		Overload: func() (time.Duration, bool) { return s.overload, s.overload > 0 },
		NewID:    func() string { n++; return fmt.Sprintf("made-%d", n) },
	}))
	return s
}

func (s *setup) submit(t *testing.T, body string, headers ...string) apitest.Answer {
	t.Helper()
	return apitest.Do(t, s.h, "POST", "/v1/operations", body, headers...)
}

const small = `{"id":"op-1","organization":"acme","type":"bulk-delete"}`

const opOne = "/v1/organizations/acme/operations/op-1"

func TestRoutesAreTheContracts(t *testing.T) {
	apitest.Load(t, "command").Routes(t, command.Routes(command.Config{}))
}

// Every documented status of every command is given, and every answer is as the document says.
func TestContract(t *testing.T) {
	s := newSetup(t)
	expect := func(got apitest.Answer, status int, code api.Code) apitest.Answer {
		t.Helper()
		if got.Status != status {
			t.Errorf("expected %d %s, but got %d %s", status, code, got.Status, got.Body)
		} else if code != "" {
			if p := got.Problem(t); p.Code != code {
				t.Errorf("expected %s, but got %s", code, got.Body)
			}
		}
		return got
	}
	do := func(method, path, body string, headers ...string) apitest.Answer {
		t.Helper()
		return apitest.Do(t, s.h, method, path, body, headers...)
	}
	// fresh submits an operation in the given state and returns its path.
	n := 0
	fresh := func(kind string, reports ...operation.Command) string {
		n++
		id := fmt.Sprintf("op-%d", n)
		expect(s.submit(t, fmt.Sprintf(`{"id":%q,"organization":"acme","type":%q}`, id, kind)), 202, "")
		for _, r := range reports {
			s.journal.work("acme", operation.ID(id), r)
		}
		return "/v1/organizations/acme/operations/" + id
	}
	running := operation.Command{Kind: operation.Dispatch}
	succeed := operation.Command{Kind: operation.Succeed}
	fail := operation.Command{Kind: operation.Fail, Failure: &operation.Failure{Class: retry.Fail}}

	// Submissions.
	expect(s.submit(t, `{"id":"s","organization":"acme","type":"workflow"}`), 202, "")
	s.journal.work("acme", "s", succeed)
	expect(s.submit(t, `{"id":"s","organization":"acme","type":"workflow"}`), 200, "")
	expect(s.submit(t, `{"id":"s","organization":"acme","type":"import"}`), 409, "key_reused")
	expect(s.submit(t, `{`), 400, "malformed_json")
	expect(s.submit(t, strings.Repeat(" ", 1<<20+1)), 413, api.TooLarge)
	expect(s.submit(t, small, "Content-Type", "text/plain"), 415, api.NotJSON)
	expect(do("POST", "/v1/operations:batch", `{"id":"b","organization":"acme","type":"import"}`, "Content-Type", "application/jsonl"), 200, "")
	expect(do("POST", "/v1/operations:batch", small), 415, api.NotJSON)
	expect(do("POST", "/v1/operations:batch?x="+strings.Repeat("1", 20<<10), small, "Content-Type", "application/jsonl"), 413, api.TooLarge)

	// Commands that take effect, and those that wait for a handler.
	expect(do("POST", fresh("workflow")+"/cancel", ""), 200, "")
	expect(do("POST", fresh("workflow", running)+"/cancel", `{"by":"ann","reason":"wrong list"}`), 202, "")
	expect(do("POST", fresh("workflow")+"/pause", ""), 200, "")
	expect(do("POST", fresh("workflow", running)+"/pause", ""), 202, "")
	paused := fresh("workflow")
	expect(do("POST", paused+"/pause", ""), 200, "")
	expect(do("POST", paused+"/resume", ""), 200, "")
	expect(do("POST", fresh("workflow")+"/postpone", `{"until":"2100-01-01T00:00:00Z"}`), 200, "")
	expect(do("POST", fresh("workflow", running)+"/postpone", `{"until":"2100-01-01T00:00:00Z"}`), 202, "")
	expect(do("POST", fresh("workflow", fail)+"/retry", `{"data":{"corrected":true}}`), 200, "")
	deleted := fresh("workflow", succeed)
	expect(do("DELETE", deleted+"?by=ann&reason=old", ""), 200, "")

	// Refusals that all commands have in common.
	for _, name := range []string{"cancel", "pause", "resume", "postpone", "retry", "delete"} {
		method, suffix, body := "POST", "/"+name, ""
		if name == "delete" {
			method, suffix = "DELETE", ""
		}
		if name == "postpone" {
			body = `{"until":"2100-01-01T00:00:00Z"}`
		}
		open := fresh("workflow")
		ended := fresh("workflow", succeed)
		expect(do(method, "/v1/organizations/acme/operations/nothing"+suffix, body), 404, "not_found")
		expect(do(method, open+suffix+"?after=x", body), 400, api.InvalidParameter)
		expect(do(method, open+suffix+"?dependencytoken=x", body), 400, api.UnknownParameter)
		switch name {
		case "delete":
			expect(do(method, open, ""), 409, "not_completed")
			expect(do(method, deleted, ""), 200, "") // again: nothing to do
			expect(do(method, open+"?by="+strings.Repeat("x", 300), ""), 400, api.InvalidRequest)
		case "retry":
			expect(do(method, ended+suffix, body), 409, "not_failed")
		default:
			expect(do(method, ended+suffix, body), 409, "already_done")
		}
		if name != "delete" {
			expect(do(method, deleted+suffix, body), 410, "deleted")
			expect(do(method, open+suffix, `{"why":"not"}`), 400, api.InvalidRequest)
			expect(do(method, open+suffix, strings.Repeat(" ", 1<<20+1)), 413, api.TooLarge)
			expect(do(method, open+suffix, "{}", "Content-Type", "text/plain"), 415, api.NotJSON)
		}
		s.overload = 7 * time.Second
		if got := expect(do(method, open+suffix, body), 429, api.Overloaded); got.Header.Get("Retry-After") != "7" {
			t.Errorf("expected Retry-After 7, but got %q", got.Header.Get("Retry-After"))
		}
		s.overload = 0
		s.tables.down = api.NewProblem(api.ReadSideUnavailable, "down")
		expect(do(method, open+suffix, body), 503, api.ReadSideUnavailable)
		s.tables.down = nil
		s.journal.fail = func(context.Context, *operation.Command) error {
			return fmt.Errorf("broker: %w", command.ErrUnavailable)
		}
		expect(do(method, open+suffix, body), 503, api.LogUnavailable)
		s.journal.fail = func(context.Context, *operation.Command) error {
			return fmt.Errorf("silence: %w", command.ErrOutcomeUnknown)
		}
		expect(do(method, open+suffix, body), 504, api.OutcomeUnknown)
		s.journal.fail = nil
	}
	expect(do("POST", fresh("workflow")+"/postpone", `{"until":"1999-01-01T00:00:00Z"}`), 400, "invalid_time")
	for _, name := range []string{"cancel", "pause", "resume"} {
		expect(do("POST", fresh("sqm-data-collection")+"/"+name, ""), 403, "platform_job")
	}
	// A delete of what ended too long ago.
	s.journal.fail = nil
	ghost := &ghostJournal{s.journal, &operation.Rejection{Code: operation.Forgotten, Reason: "gone"}}
	gone := s.contract.Handler(t, command.Routes(command.Config{Journal: ghost}))
	expect(apitest.Do(t, gone, "DELETE", opOne, ""), 410, "forgotten")

	s.overload = time.Millisecond
	expect(s.submit(t, small), 429, api.Overloaded)
	expect(do("POST", "/v1/operations:batch", small, "Content-Type", "application/jsonl"), 429, api.Overloaded)
	s.overload = 0
	for err, want := range map[error]struct {
		status int
		code   api.Code
	}{
		command.ErrUnavailable: {503, api.LogUnavailable}, command.ErrOutcomeUnknown: {504, api.OutcomeUnknown},
		fmt.Errorf("%w: %w", command.ErrOutcomeUnknown, command.ErrUnavailable): {504, api.OutcomeUnknown}, // never more certain than it is
		context.DeadlineExceeded: {504, api.OutcomeUnknown}, errors.New("bug"): {500, api.Internal},
	} {
		s.journal.fail = func(context.Context, *operation.Command) error { return err }
		expect(s.submit(t, small), want.status, want.code)
	}
	s.journal.fail = func(context.Context, *operation.Command) error {
		return &command.OverloadError{RetryAfter: 2500 * time.Millisecond}
	}
	if got := expect(s.submit(t, small), 429, api.Overloaded); got.Header.Get("Retry-After") != "3" {
		t.Errorf("expected Retry-After to be rounded up to 3, but got %q", got.Header.Get("Retry-After"))
	}
	s.contract.Covered(t)
}

// ghostJournal refuses everything with one rejection.
type ghostJournal struct {
	*journal
	rejection *operation.Rejection
}

func (g *ghostJournal) Do(context.Context, *operation.Command, string) (command.Answer, error) {
	return command.Answer{Partition: 1, Place: 2, Rejection: g.rejection, Event: operation.Rejected}, nil
}

func TestSubmitAnswersWithThePosition(t *testing.T) {
	s := newSetup(t)
	got := s.submit(t, small)
	var out api.Outcome
	got.Into(t, &out)
	if out.Organization != "acme" || out.ID != "op-1" || out.Status != "ready" || out.StatusCode != 0 || out.Event != "requested" || out.Unchanged {
		t.Errorf("expected the operation as it was accepted, but got %s", got.Body)
	}
	if out.Position == "" || got.Header.Get(api.HeaderPosition) != out.Position {
		t.Errorf("expected the position in header and body, but got %q and %q", got.Header.Get(api.HeaderPosition), out.Position)
	}
	again := s.submit(t, `{ "type":"bulk-delete", "organization":"acme", "id":"op-1" }`)
	again.Into(t, &out)
	if again.Status != 202 || !out.Unchanged || out.Event != "unchanged" {
		t.Errorf("expected the same request to be known, but got %s", again.Body)
	}
	refused := s.submit(t, `{"id":"op-1","organization":"acme","type":"import"}`)
	if p := refused.Problem(t); p.Position == "" || refused.Header.Get(api.HeaderPosition) != p.Position || p.Fault != api.FaultCaller {
		t.Errorf("expected the position of the rejection, but got %s", refused.Body)
	}
}

func TestTheIdOfASubmission(t *testing.T) {
	s := newSetup(t)
	for _, c := range []struct {
		body string
		key  string
		id   string
	}{
		{`{"organization":"acme","type":"import"}`, "from-header", "from-header"},
		{`{"organization":"acme","type":"import"}`, "", "made-1"},
		{`{"id":"both","organization":"acme","type":"import"}`, "both", "both"},
		{`{"id":"body","organization":"acme","type":"import"}`, "header", ""},
		{`{"organization":"acme","type":"import"}`, strings.Repeat("k", 129), ""},
		{`{"organization":"acme","type":"import"}`, "\u00a0\u0085", ""},
	} {
		var headers []string
		if c.key != "" {
			headers = []string{api.HeaderIdempotencyKey, c.key}
		}
		got := s.submit(t, c.body, headers...)
		if c.id == "" {
			if p := got.Problem(t); p.Code != api.InvalidParameter || p.Field != api.HeaderIdempotencyKey {
				t.Errorf("%.40q: expected the header to be refused, but got %s", c.key, got.Body)
			}
			continue
		}
		var out api.Outcome
		got.Into(t, &out)
		if out.ID != c.id {
			t.Errorf("%q: expected the id %s, but got %s", c.key, c.id, got.Body)
		}
	}
}

func TestRefusedRequestsNameTheField(t *testing.T) {
	s := newSetup(t)
	for body, want := range map[string]string{
		`{"id":"i","organization":"acme"}`:                                                "type",
		`{"id":"i","organization":"acme","type":"UPPER"}`:                                 "type",
		`{"id":"i","type":"import"}`:                                                      "organization",
		`{"id":"i","organization":"acme","type":"import","priority":10}`:                  "priority",
		`{"id":"i","organization":"acme","type":"import","postponeUntil":"now"}`:          "postponeUntil",
		`{"id":"i","organization":"acme","type":"import","prioritee":1}`:                  "prioritee",
		`{"id":"` + strings.Repeat("x", 10<<10) + `","organization":"a","type":"import"}`: "id",
		`{"id":"a\u0000b","organization":"acme","type":"import"}`:                         "id",
	} {
		got := s.submit(t, body)
		if p := got.Problem(t); got.Status != 400 || !strings.Contains(p.Field, want) {
			t.Errorf("%.80s: expected 400 for %s, but got %d %s", body, want, got.Status, got.Body)
		}
	}
	for _, body := range []string{"", "null", "[]", "7", `{"id":"i"`, strings.Repeat("[", 100_000), `{"data":` + strings.Repeat(`{"a":`, 10_000)} {
		if got := s.submit(t, body, "Content-Type", "application/json"); got.Status != 400 {
			t.Errorf("%.40s: expected 400, but got %d %s", body, got.Status, got.Body)
		}
	}
}

// Prefer: wait on a submission waits for the end of the operation, and no longer than was asked for.
func TestSubmitWaitsForTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSetup(t)
		answers := make(chan apitest.Answer)
		go func() { answers <- s.submit(t, small, "Prefer", "wait=10") }()
		synctest.Wait()
		s.journal.work("acme", "op-1", operation.Command{Kind: operation.Dispatch})
		synctest.Wait()
		s.journal.work("acme", "op-1", operation.Command{Kind: operation.Succeed})
		got := <-answers
		var out api.Outcome
		got.Into(t, &out)
		if got.Status != 200 || out.Status != "succeeded" || out.Operation == nil || out.Operation.Status != "succeeded" || got.Header.Get("Preference-Applied") != "wait=10" {
			t.Errorf("expected 200 with the end, but got %d %v %s", got.Status, got.Header, got.Body)
		}
		if out.Event != "requested" || out.Position == out.Operation.Position {
			t.Errorf("expected the command's own event and position, but got %s", got.Body)
		}

		began := time.Now()
		got = s.submit(t, `{"id":"slow","organization":"acme","type":"import"}`, "Prefer", "wait=3")
		if got.Status != 202 || time.Since(began) != 3*time.Second || got.Header.Get("Preference-Applied") != "wait=3" {
			t.Errorf("expected 202 after 3 s, but got %d after %s", got.Status, time.Since(began))
		}
		s.tables.down = errors.New("down")
		got = s.submit(t, `{"id":"blind","organization":"acme","type":"import"}`, "Prefer", "wait=3")
		if got.Status != 202 || got.Header.Get("Preference-Applied") != "" {
			t.Errorf("expected 202 at once without tables, but got %d %v", got.Status, got.Header)
		}
	})
}

// Prefer: wait on a command waits until the handler has come to a safe point.
func TestCommandsWaitForTheEffect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSetup(t)
		s.submit(t, small)
		s.journal.work("acme", "op-1", operation.Command{Kind: operation.Dispatch})
		answers := make(chan apitest.Answer)
		go func() {
			answers <- apitest.Do(t, s.h, "POST", opOne+"/pause", `{"by":"ann"}`, "Prefer", "wait=30")
		}()
		synctest.Wait()
		if state, _, _ := s.journal.find("acme", "op-1"); state.Status != operation.StatusPausing || state.By.Who != "" && state.By.Who != "ann" {
			t.Fatalf("expected it to be pausing, but it is %s", state.Status)
		}
		s.journal.work("acme", "op-1", operation.Command{Kind: operation.Stop})
		got := <-answers
		var out api.Outcome
		got.Into(t, &out)
		if got.Status != 200 || out.Status != "waiting" || out.Event != "pause-requested" {
			t.Errorf("expected 200 with the pause, but got %d %s", got.Status, got.Body)
		}
		// Nothing to wait for: the answer does not take the time.
		began := time.Now()
		if got := apitest.Do(t, s.h, "POST", opOne+"/cancel", "", "Prefer", "wait=30"); got.Status != 200 || time.Since(began) != 0 {
			t.Errorf("expected 200 at once, but got %d after %s", got.Status, time.Since(began))
		}
		if got := apitest.Do(t, s.h, "DELETE", opOne, "", "Prefer", "wait=30"); got.Status != 200 || time.Since(began) != 0 {
			t.Errorf("expected 200 at once, but got %d after %s", got.Status, time.Since(began))
		}
	})
}

// A journal that does not answer is not waited for for ever, and the caller learns that the outcome is open.
func TestASilentJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSetup(t)
		s.journal.fail = func(ctx context.Context, _ *operation.Command) error { <-ctx.Done(); return ctx.Err() }
		began := time.Now()
		got := s.submit(t, small)
		if p := got.Problem(t); p.Code != api.OutcomeUnknown || !p.Retryable || time.Since(began) != 10*time.Second {
			t.Errorf("expected outcome_unknown after 10 s, but got %s after %s", got.Body, time.Since(began))
		}
	})
}

// With the tables down a command still works when its caller knows the token, or when there is none to know.
func TestCommandsFindTheirPartition(t *testing.T) {
	s := newSetup(t)
	s.submit(t, `{"id":"op-1","organization":"acme","type":"import","dependencyToken":"list 7"}`)
	s.submit(t, `{"id":"op-2","organization":"acme","type":"import","dependencyToken":"list 7","partitionKey":"k"}`)
	s.submit(t, `{"id":"op-3","organization":"acme","type":"import"}`)
	path := func(id, query string) string { return "/v1/organizations/acme/operations/" + id + "/pause" + query }
	for _, target := range []string{path("op-1", ""), path("op-2", ""), path("op-3", "")} {
		if got := apitest.Do(t, s.h, "POST", target, ""); got.Status != 200 {
			t.Errorf("%s: expected the tables to find it, but got %d %s", target, got.Status, got.Body)
		}
	}
	s.tables.down = api.NewProblem(api.ReadSideUnavailable, "down")
	for target, status := range map[string]int{
		path("op-1", "?dependencyToken=list+7"): 200, path("op-2", "?partitionKey=k"): 200, path("op-1", ""): 503,
		path("op-1", "?after=0-99999"): 503,
	} {
		if got := apitest.Do(t, s.h, "POST", target, ""); got.Status != status {
			t.Errorf("%s: expected %d without tables, but got %d %s", target, status, got.Status, got.Body)
		}
	}
	// Without any tables the default key is all there is.
	bare := s.contract.Handler(t, command.Routes(command.Config{Journal: s.journal}))
	if got := apitest.Do(t, bare, "POST", path("op-3", ""), ""); got.Status != 200 {
		t.Errorf("expected the default key to do, but got %d %s", got.Status, got.Body)
	}
	s.tables.down = nil
	got := apitest.Do(t, s.h, "POST", path("nowhere", ""), "")
	if p := got.Problem(t); p.Code != "not_found" || !strings.Contains(p.Detail, "dependencyToken") {
		t.Errorf("expected not_found with advice, but got %s", got.Body)
	}
	if got := apitest.Do(t, s.h, "POST", path("op-1", "?after=1-99999"), ""); got.Problem(t).Code != api.ReadSideBehind {
		t.Errorf("expected read_side_behind, but got %s", got.Body)
	}
}

func TestCommandBodies(t *testing.T) {
	s := newSetup(t)
	s.submit(t, small)
	for _, c := range []struct{ command, body, field string }{
		{"postpone", "", "/until"},
		{"postpone", `{}`, "/until"},
		{"postpone", `{"until":"tomorrow"}`, "/until"},
		{"postpone", `{"until":"2030-02-30T00:00:00Z"}`, "/until"},
		{"postpone", `{"until":"0000-12-31T23:59:59Z"}`, "/until"},
		{"postpone", `{"until":7}`, "/until"},
		{"cancel", `{"until":"2030-01-01T00:00:00Z"}`, "/until"},
		{"cancel", `{"data":{}}`, "/data"},
		{"postpone", `{"until":"2030-01-01T00:00:00Z","data":null}`, "/data"},
		{"cancel", `{"by":"` + strings.Repeat("x", 257) + `"}`, "by"},
		{"cancel", `{"reason":"` + strings.Repeat("x", 2001) + `"}`, "reason"},
		{"cancel", `{"by":"a\u0007"}`, "by"},
		{"cancel", `{"by":{}}`, "/by"},
		{"cancel", `{"data":` + strings.Repeat("[", 100), ""},
		{"cancel", `null null`, ""},
	} {
		got := apitest.Do(t, s.h, "POST", opOne+"/"+c.command, c.body)
		if p := got.Problem(t); got.Status != 400 || p.Field != c.field {
			t.Errorf("%s %.60s: expected 400 for %q, but got %d %s", c.command, c.body, c.field, got.Status, got.Body)
		}
	}
	if state, _, _ := s.journal.find("acme", "op-1"); state.Status != operation.StatusReady {
		t.Errorf("expected nothing to have happened, but it is %s", state.Status)
	}
	for _, c := range []string{"sideways", "Cancel", "delete", "submit", "start", "dispatch"} {
		if got := apitest.Do(t, s.h, "POST", opOne+"/"+c, "{}"); got.Status != 404 {
			t.Errorf("%s: expected 404, but got %d", c, got.Status)
		}
	}
}

func TestWhoAndWhyReachTheJournal(t *testing.T) {
	s := newSetup(t)
	var heard []operation.Command
	s.journal.entered = func(c *operation.Command) { heard = append(heard, *c) }
	s.submit(t, small)
	apitest.Do(t, s.h, "POST", opOne+"/cancel", `{"by":"Ann Ä.","reason":"wrong\nlist"}`, api.HeaderIdempotencyKey, "cmd-7")
	apitest.Do(t, s.h, "DELETE", opOne+"?by=bob&reason=old%20one", "")
	s.submit(t, `{"id":"f","organization":"acme","type":"import"}`)
	s.journal.work("acme", "f", operation.Command{Kind: operation.Fail, Failure: &operation.Failure{Class: retry.Fail}})
	apitest.Do(t, s.h, "POST", "/v1/organizations/acme/operations/f/retry", `{"data":{"b":1,"a":2}}`)
	if len(heard) != 5 {
		t.Fatalf("expected five commands, but got %d", len(heard))
	}
	if c := heard[1]; c.By != (operation.By{Who: "Ann Ä.", Reason: "wrong\nlist"}) || c.CommandID != "cmd-7" {
		t.Errorf("expected who, why and the key, but got %+v", c)
	}
	if c := heard[2]; c.By != (operation.By{Who: "bob", Reason: "old one"}) || c.CommandID == "" {
		t.Errorf("expected who, why and an id, but got %+v", c)
	}
	if c := heard[4]; string(c.Data) != `{"b":1,"a":2}` {
		t.Errorf("expected the data as it was given, but got %s", c.Data)
	}
}

func TestKindsOfCommand(t *testing.T) {
	var paths []string
	for _, r := range command.Routes(command.Config{}) {
		paths = append(paths, r.Method+" "+r.Path[strings.LastIndex(r.Path, "/")+1:])
	}
	slices.Sort(paths)
	want := []string{"DELETE {id}", "POST cancel", "POST operations", "POST operations:batch", "POST pause", "POST postpone", "POST resume", "POST retry"}
	if !slices.Equal(paths, want) {
		t.Errorf("expected %q, but got %q", want, paths)
	}
}

// A body counts until its command is answered. What does not fit is refused while it is read, and is taken when there is room again.
func TestBodiesAreBoundedTogether(t *testing.T) {
	j := &slowJournal{begun: make(chan struct{}, 1), let: make(chan struct{})}
	h := apitest.Load(t, "command").Handler(t, command.Routes(command.Config{Journal: j, BodyBytes: int64(len(small) + 10)}))
	answered := make(chan apitest.Answer, 1)
	go func() { answered <- apitest.Do(t, h, "POST", "/v1/operations", small) }()
	<-j.begun
	got := apitest.Do(t, h, "POST", "/v1/operations", small)
	if p := got.Problem(t); got.Status != http.StatusTooManyRequests || p.Code != api.Overloaded || got.Header.Get("Retry-After") != "1" {
		t.Errorf("expected the second body to be refused with 429, overloaded, for a second, but got %d %s, Retry-After %q", got.Status, got.Body, got.Header.Get("Retry-After"))
	}
	close(j.let)
	if got := <-answered; got.Status != http.StatusAccepted {
		t.Errorf("expected the first to be accepted, but got %d %s", got.Status, got.Body)
	}
	if got := apitest.Do(t, h, "POST", "/v1/operations", small); got.Status != http.StatusAccepted {
		t.Errorf("expected the second to be accepted when there is room again, but got %d %s", got.Status, got.Body)
	}
}

// slowJournal accepts commands when it is let.
type slowJournal struct{ begun, let chan struct{} }

func (j *slowJournal) Do(_ context.Context, cmd *operation.Command, _ string) (command.Answer, error) {
	select {
	case j.begun <- struct{}{}:
	default:
	}
	<-j.let
	return command.Answer{Event: operation.Requested, Status: operation.StatusReady}, nil
}

// Each batch may have several MiB under way, so their number is bounded, too.
func TestBatchesAreBounded(t *testing.T) {
	j := &slowJournal{begun: make(chan struct{}, 1), let: make(chan struct{})}
	h := apitest.Load(t, "command").Handler(t, command.Routes(command.Config{Journal: j, Batches: 1}))
	batch := func() apitest.Answer {
		return apitest.Do(t, h, "POST", "/v1/operations:batch", small+"\n", "Content-Type", "application/jsonl")
	}
	answered := make(chan apitest.Answer, 1)
	go func() { answered <- batch() }()
	<-j.begun
	if got := batch(); got.Status != http.StatusTooManyRequests || got.Problem(t).Code != api.Overloaded || got.Header.Get("Retry-After") != "1" {
		t.Errorf("expected a second batch at once to be refused with 429 for a second, but got %d %s", got.Status, got.Body)
	}
	close(j.let)
	<-answered
	if got := batch(); got.Status != http.StatusOK {
		t.Errorf("expected it to be taken when the first has ended, but got %d %s", got.Status, got.Body)
	}
}
