package query_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/internal/api/apitest"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/query"
)

func TestRoutesAreTheContracts(t *testing.T) {
	apitest.Load(t, "query").Routes(t, query.New(query.Config{}).Routes())
}

// Every documented status of every read is given, and every answer is as the document says.
func TestContract(t *testing.T) {
	w := newWorld(t)
	w.simple("op-1", "bulk-delete", dispatch, begin, succeed)
	w.simple("op-2", "workflow", dispatch, failWith(retry.Again, "connection refused"))
	w.simple("op-3", "workflow", canceled, operation.Command{Kind: operation.Cancel})
	const one = "/v1/organizations/acme/operations/op-1"
	statuses := map[string]int{
		"/v1/operations": 200, "/v1/operations?limit=0": 400, "/v1/operations?after=0-99": 503,
		one: 200, one + "?after=0": 400, one + "1": 404, one + "?after=0-99": 503,
		one + "/history": 200, one + "/history?limit=x": 400, one + "1/history": 404, one + "/history?after=0-99": 503,
		"/v1/counts": 200, "/v1/counts?org=acme": 400, "/v1/counts?after=0-99": 503,
		"/v1/events?id=x": 400, "/": 200, "/assets/nothing.js": 404,
	}
	for path, status := range statuses {
		got := w.get(path, "Prefer", "wait=0")
		if got.Status != status {
			t.Errorf("%s: expected %d, but got %d %s", path, status, got.Status, got.Body)
		}
	}
	page := string(w.get("/").Body)
	for _, ext := range []string{"css", "js"} {
		_, rest, _ := strings.Cut(page, `"/assets/page.`)
		if ext == "js" {
			_, rest, _ = strings.Cut(page, `src="/assets/page.`)
		}
		name, _, _ := strings.Cut(rest, `"`)
		if got := w.get("/assets/page." + name); got.Status != 200 || !strings.Contains(got.Header.Get("Cache-Control"), "immutable") || !strings.HasSuffix(name, ext) {
			t.Errorf("%s: expected the %s file for ever, but got %d %v", name, ext, got.Status, got.Header)
		}
	}
	// A stream, which ends with its client.
	ctx, cancel := context.WithCancel(t.Context())
	r := httptest.NewRequestWithContext(ctx, "GET", "/v1/events", nil)
	cancel()
	w.h.ServeHTTP(httptest.NewRecorder(), r)

	w.store.fails(errors.New("no route to host"))
	for _, path := range []string{"/v1/operations", one, one + "/history", "/v1/counts"} {
		got := w.get(path)
		if p := got.Problem(t); got.Status != 503 || p.Code != api.ReadSideUnavailable || p.Fault != api.FaultService || strings.Contains(string(got.Body), "route") {
			t.Errorf("%s: expected 503 without the error's text, but got %d %s", path, got.Status, got.Body)
		}
	}
	w.held.down = errors.New("no route to host")
	if got := w.get("/"); got.Status != 503 || !strings.Contains(string(got.Body), "cannot be read") {
		t.Errorf("expected the page to say that there are no numbers, but got %d", got.Status)
	}
	if got := w.get("/v1/events"); got.Status != 503 {
		t.Errorf("expected 503, but got %d", got.Status)
	}
	w.contract.Covered(t)
}

func TestAnOperationInFull(t *testing.T) {
	w := newWorld(t)
	w.submit(1, `{"id":"a/b","organization":"o/1","type":"bulk-email","name":"Mail","dependencyToken":"list","priority":7,"correlationId":"c-1","data":{"to":["x"]}}`)
	for _, c := range []operation.Command{
		dispatch, begin,
		{Kind: operation.Progress, Progress: []byte(`{"sent":3}`)},
		{Kind: operation.Succeed, Result: []byte(`{"sent":4}`)},
	} {
		c.Org, c.ID = "o/1", "a/b"
		w.do(1, c)
	}
	got := w.get("/v1/organizations/o%2F1/operations/a%2Fb")
	var o api.Operation
	got.Into(t, &o)
	if o.Organization != "o/1" || o.ID != "a/b" || o.TypeCode != 2 || o.Name != "Mail" || o.Priority != 7 || o.CorrelationID != "c-1" ||
		o.State != "Completed" || o.StateCode != 3 || o.StatusReason != "Succeeded" || o.StatusCode != 30 || o.PartitionKey != "o/1/list" ||
		string(o.Result) != `{"sent":4}` || string(o.Progress) != `{"sent":3}` || o.Attempt != 1 || o.Session != "worker-1" || o.Position != "1-4" || o.Sequence != 0 {
		t.Errorf("expected the operation, but got %s", got.Body)
	}
	if o.StartedAt == nil || o.CompletedAt == nil || !o.CreatedAt.Before(*o.CompletedAt) || !strings.Contains(string(o.Request), `"to":["x"]`) {
		t.Errorf("expected times and the request, but got %s", got.Body)
	}
	if got.Header.Get(api.HeaderAsOf) != "1-4" || got.Header.Get(api.HeaderLag) != "12" {
		t.Errorf("expected how old it is, but got %v", got.Header)
	}

	var h api.History
	first := w.get("/v1/organizations/o%2F1/operations/a%2Fb/history?limit=3")
	first.Into(t, &h)
	var names []string
	for h.Next != "" {
		for _, e := range h.Events {
			names = append(names, e.Event)
		}
		next := h.Next
		h = api.History{}
		w.get("/v1/organizations/o%2F1/operations/a%2Fb/history?limit=3&cursor="+next).Into(t, &h)
	}
	for _, e := range h.Events {
		names = append(names, e.Event)
	}
	if want := []string{"requested", "dispatched", "started", "progressed", "succeeded"}; !slices.Equal(names, want) {
		t.Errorf("expected %q, but got %q", want, names)
	}
}

// What was refused is what people ask about: an operation that is not there tells of the last refusal.
func TestMissingOperationsTellOfTheLastRefusal(t *testing.T) {
	w := newWorld(t)
	position := w.do(0, operation.Command{Kind: operation.Cancel, ID: "ghost"})
	p := w.get("/v1/organizations/acme/operations/ghost").Problem(t)
	if p.Code != "not_found" || !strings.Contains(p.Detail, "cancel") || p.Position != position {
		t.Errorf("expected the refusal and its position %s, but got %+v", position, p)
	}
	p = w.get("/v1/organizations/acme/operations/unheard/history").Problem(t)
	if p.Code != "not_found" || p.Position != "" {
		t.Errorf("expected a plain not_found, but got %+v", p)
	}
}

func TestLists(t *testing.T) {
	w := newWorld(t)
	for i := range 7 {
		w.simple(fmt.Sprintf("a%d", i), "bulk-delete")
	}
	w.simple("done", "workflow", dispatch, succeed)
	w.simple("retried", "workflow", dispatch, failWith(retry.Again, "busy"))
	w.submit(1, `{"id":"t1","organization":"other","type":"helpdesk.close","dependencyToken":"tok","correlationId":"cc"}`)
	w.submit(1, `{"id":"t2","organization":"other","type":"helpdesk.close","dependencyToken":"tok"}`, "t1")

	ids := func(query string) string {
		t.Helper()
		var all []string
		for cursor, pages := "", 0; ; pages++ {
			var page api.List
			got := w.get("/v1/operations?" + query + cursor)
			if got.Status != 200 || pages > 50 {
				t.Fatalf("%s: expected a page, but got %d %s", query, got.Status, got.Body)
			}
			got.Into(t, &page)
			for _, o := range page.Operations {
				if o.Request != nil {
					t.Errorf("expected no request in a list, but got %s", o.Request)
				}
				all = append(all, o.ID)
			}
			if page.Next == "" {
				return strings.Join(all, " ")
			}
			cursor = "&cursor=" + page.Next
		}
	}
	for query, want := range map[string]string{
		"":                                 "t2 t1 retried done a6 a5 a4 a3 a2 a1 a0",
		"limit=2":                          "t2 t1 retried done a6 a5 a4 a3 a2 a1 a0",
		"order=oldest&limit=3":             "a0 a1 a2 a3 a4 a5 a6 done retried t1 t2",
		"organization=other":               "t2 t1",
		"organization=nobody":              "",
		"status=succeeded":                 "done",
		"status=succeeded,waiting&limit=1": "t2 retried done",
		"wait=dependency":                  "t2",
		"wait=retry,dependency":            "t2 retried",
		"type=10":                          "retried done",
		"type=workflow,helpdesk.close":     "t2 t1 retried done",
		"token=tok&order=oldest":           "t1 t2",
		"correlationId=cc":                 "t1",
		"createdAfter=2030-01-31T08:00:03Z&createdBefore=2030-01-31T08:00:05Z&order=oldest": "a2 a3",
		"createdAfter=2030-01-31T10:00:03%2B02:00&createdBefore=2030-01-31T08:00:04Z":       "a2",
		"modifiedBefore=2030-01-31T08:00:02Z":                                               "a0",
	} {
		if got := ids(query); got != want {
			t.Errorf("%s: expected %q, but got %q", query, want, got)
		}
	}
}

func TestListsRefuseWhatCannotBe(t *testing.T) {
	w := newWorld(t)
	for i := range 3 {
		w.simple(fmt.Sprintf("a%d", i), "bulk-delete")
	}
	var page api.List
	w.get("/v1/operations?limit=1").Into(t, &page)
	long := strings.Repeat("x", 10<<10)
	for query, want := range map[string]struct {
		code  api.Code
		field string
	}{
		"status=absent":                    {api.InvalidParameter, "status"},
		"status=Ready":                     {api.InvalidParameter, "status"},
		"status=":                          {api.InvalidParameter, "status"},
		"organization=":                    {api.InvalidParameter, "organization"},
		"token=":                           {api.InvalidParameter, "token"},
		"correlationId=&limit=5":           {api.InvalidParameter, "correlationId"},
		"createdAfter=":                    {api.InvalidParameter, "createdAfter"},
		"status=ready,":                    {api.InvalidParameter, "status"},
		"wait=" + long:                     {api.InvalidParameter, "wait"},
		"type=UPPER":                       {api.InvalidParameter, "type"},
		"type=99999999":                    {api.InvalidParameter, "type"},
		"type=" + long:                     {api.InvalidParameter, "type"},
		"type=a%00b":                       {api.InvalidParameter, "type"},
		"createdAfter=yesterday":           {api.InvalidParameter, "createdAfter"},
		"createdBefore=2030-13-01T0:0Z":    {api.InvalidParameter, "createdBefore"},
		"modifiedAfter=1":                  {api.InvalidParameter, "modifiedAfter"},
		"limit=1001":                       {api.InvalidParameter, "limit"},
		"limit=-1":                         {api.InvalidParameter, "limit"},
		"limit=":                           {api.InvalidParameter, "limit"},
		"limit=1e3":                        {api.InvalidParameter, "limit"},
		"order=random":                     {api.InvalidParameter, "order"},
		"cursor=x":                         {api.InvalidCursor, "cursor"},
		"cursor=" + long:                   {api.InvalidCursor, "cursor"},
		"cursor=..%2F..":                   {api.InvalidCursor, "cursor"},
		"order=oldest&cursor=" + page.Next: {api.InvalidCursor, "cursor"},
		"status=ready&cursor=" + page.Next: {api.InvalidCursor, "cursor"},
		"cursor=B" + page.Next[1:]:         {api.InvalidCursor, "cursor"},
		"after=0-1,":                       {api.InvalidParameter, "after"},
		"after=" + long:                    {api.InvalidParameter, "after"},
		"Organization=acme":                {api.UnknownParameter, "Organization"},
		"%24filter=x":                      {api.UnknownParameter, "$filter"},
		long + "=1":                        {api.UnknownParameter, strings.Repeat("x", 60) + "…"},
	} {
		got := w.get("/v1/operations?" + query)
		if p := got.Problem(t); got.Status != 400 || p.Code != want.code || p.Field != want.field || len(got.Body) > 2000 {
			t.Errorf("%.60s: expected 400 %s %s, but got %d %.400s", query, want.code, want.field, got.Status, got.Body)
		}
	}
	for _, cursor := range []string{"x", "-1", "", "9223372036854775808", "1.0", "１"} {
		got := w.get("/v1/organizations/acme/operations/a0/history?cursor=" + url.QueryEscape(cursor))
		if p := got.Problem(t); p.Code != api.InvalidCursor {
			t.Errorf("%q: expected invalid_cursor, but got %s", cursor, got.Body)
		}
	}
}

func TestCounts(t *testing.T) {
	w := newWorld(t)
	w.simple("a", "bulk-delete")
	w.simple("b", "bulk-delete", dispatch, succeed)
	w.simple("c", "workflow", dispatch, failWith(retry.Again, "busy"))
	w.submit(1, `{"id":"d","organization":"other","type":"import"}`)
	var c api.Counts
	w.get("/v1/counts").Into(t, &c)
	if c.Total != 4 || len(c.ByStatus) != 9 || c.ByStatus[0].Status != "ready" || c.ByStatus[0].Count != 2 || c.ByType[0].Type != "bulk-delete" || c.ByType[0].Count != 2 ||
		c.ByType[0].ByStatus["succeeded"] != 1 || len(c.ByWait) != 2 || c.ByWait[0] != (api.WaitCount{Wait: "resources", Count: 2}) {
		t.Errorf("expected the counts, but got %+v", c)
	}
	w.get("/v1/counts?organization=other").Into(t, &c)
	if c.Total != 1 || c.Organization != "other" {
		t.Errorf("expected one, but got %+v", c)
	}
	if got := w.get("/v1/counts?organization=nobody"); !strings.Contains(string(got.Body), `"byType":[]`) {
		t.Errorf("expected empty lists, but got %s", got.Body)
	}
}

// A read after a position waits until the tables hold it, and no longer than it may.
func TestReadsWaitForPositions(t *testing.T) {
	w := newWorld(t)
	w.simple("a", "import")
	answers := make(chan apitest.Answer)
	go func() {
		answers <- w.get("/v1/organizations/acme/operations/b?after=0-1,0-0", "Prefer", "wait=60")
	}()
	<-w.held.waits // it waits
	w.simple("b", "import")
	if got := <-answers; got.Status != 200 || got.Header.Get("Preference-Applied") != "wait=60" {
		t.Errorf("expected 200 once the tables have it, but got %d %s", got.Status, got.Body)
	}
	got := w.get("/v1/counts?after=0-5", "Prefer", "wait=0")
	if p := got.Problem(t); p.Code != api.ReadSideBehind || !p.Retryable || got.Header.Get("Retry-After") == "" {
		t.Errorf("expected read_side_behind with Retry-After, but got %s", got.Body)
	}
	if len(w.held.waiting) != 0 {
		t.Errorf("expected nobody to wait any more, but there are %d", len(w.held.waiting))
	}
}

func TestLocate(t *testing.T) {
	w := newWorld(t)
	w.submit(1, `{"id":"t","organization":"acme","type":"import","dependencyToken":"tok"}`)
	if key, found, err := w.q.Locate(t.Context(), "acme", "t", api.Positions{{Partition: 1, Place: 0}}); key != "acme/tok" || !found || err != nil {
		t.Errorf("expected acme/tok, but got %s, %v, %v", key, found, err)
	}
	if _, found, err := w.q.Locate(t.Context(), "acme", "nobody", nil); found || err != nil {
		t.Errorf("expected none, but got %v, %v", found, err)
	}
	w.store.fails(errors.New("down"))
	var p *api.Problem
	if _, _, err := w.q.Locate(t.Context(), "acme", "t", nil); !errors.As(err, &p) || p.Code != api.ReadSideUnavailable {
		t.Errorf("expected read_side_unavailable, but got %v", err)
	}
}

func TestAwait(t *testing.T) {
	w := newWorld(t)
	w.simple("a", "import", dispatch)
	ended := func(o *api.Operation) bool { return o.Ended() }
	type result struct {
		o   *api.Operation
		err error
	}
	results := make(chan result)
	go func() {
		o, err := w.q.Await(t.Context(), "acme", "a", api.Position{Partition: 0, Place: 2}, ended)
		results <- result{o, err}
	}()
	<-w.held.waits
	w.do(0, operation.Command{Kind: operation.Progress, ID: "a", Progress: []byte("1")}) // holds the position, but it has not ended
	c := succeed
	c.ID = "a"
	w.do(0, c)
	if r := <-results; r.err != nil || r.o.Status != "succeeded" {
		t.Errorf("expected the end, but got %+v, %v", r.o, r.err)
	}
	w.simple("b", "import")
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if _, err := w.q.Await(ctx, "acme", "b", api.Position{}, ended); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("expected the deadline, but got %v", err)
	}
	if _, err := w.q.Await(t.Context(), "acme", "nobody", api.Position{}, ended); !errors.Is(err, projections.ErrNotFound) {
		t.Errorf("expected not found, but got %v", err)
	}
}

func TestPolled(t *testing.T) {
	w := newWorld(t)
	w.simple("a", "import")
	p := query.NewPolled(w.store, time.Nanosecond, func(int32) query.End { return query.End{Next: 1} })
	if err := p.WaitFor(t.Context(), 0, 0); err != nil {
		t.Errorf("expected the tables to hold it, but: %v", err)
	}
	if list, lag, err := p.AsOf(t.Context()); list.String() != "0-0" || lag != 0 || err != nil {
		t.Errorf("expected 0-0 and no lag, but got %s %s %v", list, lag, err)
	}
	behind := query.NewPolled(longAgo{w.store}, time.Nanosecond, func(int32) query.End { return query.End{Next: 2} })
	if _, lag, err := behind.AsOf(t.Context()); lag == 0 || err != nil {
		t.Errorf("expected a lag while the journal has more, but got %s %v", lag, err)
	}
	done := make(chan error)
	go func() { done <- p.WaitFor(t.Context(), 0, 1) }()
	w.simple("b", "import")
	if err := <-done; err != nil {
		t.Errorf("expected it to be heard of, but: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.WaitFor(ctx, 0, 99); err == nil {
		t.Error("expected the context's end")
	}
}

// TestLagAfterARest: what has just come is not behind for as long as nothing came before it. What came before the rest is.
func TestLagAfterARest(t *testing.T) {
	tables := longAgo{newWorld(t).store}
	f := query.NewFollower(tables, time.Nanosecond, query.NewFeed(), slog.New(slog.DiscardHandler))
	lag := func() time.Duration {
		t.Helper()
		_, lag, err := f.Progress.AsOf(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return lag
	}
	hear := func(place operation.Place, ago time.Duration) {
		f.Hear([]query.Heard{{Place: place, At: operation.TimeOf(time.Now().Add(-ago))}})
	}
	hear(0, 3*time.Hour) // before it is known where the journal ended, and so when what is before that came
	f.Begin(map[int32]int64{0: 1})
	if got := lag(); got != 0 {
		t.Errorf("expected tables that hold all to be level, but got %s", got)
	}
	hear(1, time.Minute)
	if got := lag(); got < time.Minute || got > time.Hour {
		t.Errorf("expected the tables to be behind for a minute, but got %s", got)
	}
	hear(2, time.Minute-restBelow)
	if got := lag(); got < time.Minute || got > time.Hour {
		t.Errorf("expected more of the same to change nothing, but got %s", got)
	}
	hear(3, time.Second)
	if got := lag(); got < time.Hour {
		t.Errorf("expected the tables, which lack what came before the last rest, to be behind since their last event, but got %s", got)
	}
}

// restBelow is less than a rest.
const restBelow = 10 * time.Millisecond

// longAgo is tables whose last event is old.
type longAgo struct{ projections.Store }

func (longAgo) Positions(context.Context) ([]projections.Position, error) {
	return []projections.Position{{Next: 1, At: 1}}, nil
}

// slowReader answers when it is told to, and counts how often it was asked.
type slowReader struct {
	projections.Store
	asked   atomic.Int64
	answers chan error
}

func (s *slowReader) Positions(ctx context.Context) ([]projections.Position, error) {
	s.asked.Add(1)
	if err := <-s.answers; err != nil {
		return nil, err
	}
	return s.Store.Positions(ctx)
}

// TestPolledAsksOnce has many wait for one answer.
func TestPolledAsksOnce(t *testing.T) {
	w := newWorld(t)
	w.simple("a", "import")
	slow := &slowReader{Store: w.store, answers: make(chan error)}
	p := query.NewPolled(slow, time.Hour, func(int32) query.End { return query.End{Next: 0} })
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if err := p.WaitFor(t.Context(), 0, 0); err != nil {
				t.Errorf("expected the tables to hold it, but: %v", err)
			}
		})
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := p.AsOf(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("expected one whose time is over not to wait for the others, but got %v", err)
	}
	slow.answers <- nil
	all.Wait()
	if n := slow.asked.Load(); n != 1 {
		t.Errorf("expected the database to be asked once, but it was %d times", n)
	}
	// What this process writes itself nobody need ask for.
	waiting := make(chan error)
	go func() { waiting <- p.WaitFor(t.Context(), 3, 7) }()
	p.Advance([]projections.Step{{To: projections.Position{Partition: 3, Next: 8}}})
	if err := <-waiting; err != nil || slow.asked.Load() != 1 {
		t.Errorf("expected to hear of it without a question, but got %v after %d", err, slow.asked.Load())
	}
}

// TestPolledGoesForwardOnly: an answer that is older than what this process has written meanwhile takes nothing back.
func TestPolledGoesForwardOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.simple("a", "import")
		slow := &slowReader{Store: w.store, answers: make(chan error)}
		p := query.NewPolled(slow, time.Hour, func(int32) query.End { return query.End{Next: 0} })
		told := make(chan string)
		go func() {
			list, _, err := p.AsOf(t.Context())
			told <- fmt.Sprintf("%s %v", list, err)
		}()
		synctest.Wait() // asked, and not answered yet
		p.Advance([]projections.Step{{To: projections.Position{Partition: 3, Next: 8}}})
		slow.answers <- nil
		if got := <-told; got != "0-0,3-7 <nil>" {
			t.Errorf("expected what was written meanwhile to be among the positions, but got %s", got)
		}
	})
}

// TestPolledFails: a database that takes too long is no caller whose time is over.
func TestPolledFails(t *testing.T) {
	w := newWorld(t)
	slow := &slowReader{Store: w.store, answers: make(chan error, 1)}
	p := query.NewPolled(slow, time.Nanosecond, func(int32) query.End { return query.End{Next: 0} })
	slow.answers <- fmt.Errorf("reach the database: %w", context.DeadlineExceeded)
	if err := p.WaitFor(t.Context(), 0, 0); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("expected an error that is not the caller's own, but got %v", err)
	}
}

func TestWhy(t *testing.T) {
	until, err := time.Parse(time.RFC3339, "2031-01-01T00:00:00Z")
	if err != nil {
		t.Fatal(err)
	}
	at := operation.TimeOf(until)
	request := &operation.Request{Type: "import"}
	failure := &operation.Failure{Code: "smtp_down", Message: "connection refused", Class: retry.Suspend}
	by := operation.By{Who: "Ann", Reason: "the list is wrong"}
	for want, s := range map[string]operation.State{
		"no worker has room for type import":      {Status: operation.StatusReady},
		"paused by Ann because the list is wrong": {Status: operation.StatusWaiting, Holds: operation.HoldPaused, By: by},
		"paused": {Status: operation.StatusWaiting, Holds: operation.HoldPaused},
		"waits for somebody to mend why it failed, and to resume it: connection refused":                            {Status: operation.StatusWaiting, Holds: operation.HoldPaused, Failure: failure},
		"waits for operation X of the same dependency token":                                                        {Status: operation.StatusWaiting, Holds: operation.HoldDependency, BlockedBy: "X"},
		"operation X of the same dependency token did not succeed; waits for somebody to resume or cancel this one": {Status: operation.StatusWaiting, Holds: operation.HoldDependency, BlockedBy: "X", Blocked: true},
		"waits until 2031-01-01T00:00:00Z":                                                                          {Status: operation.StatusWaiting, Holds: operation.HoldPostponed, Until: at},
		"will be retried at 2031-01-01T00:00:00Z after: connection refused":                                         {Status: operation.StatusWaiting, Holds: operation.HoldRetry, Until: at, Failure: failure},
		"waits for the event approval":                                                                              {Status: operation.StatusWaiting, Holds: operation.HoldEvent, WaitsFor: "approval"},
		"paused by Ann because the list is wrong; also waits for operation X of the same dependency token":          {Status: operation.StatusWaiting, Holds: operation.HoldPaused | operation.HoldDependency, By: by, BlockedBy: "X"},
		"was asked to pause by Ann because the list is wrong; its handler has not come to a safe point":             {Status: operation.StatusPausing, By: by},
		"was asked to cancel; its handler has not come to a safe point":                                             {Status: operation.StatusCanceling},
		"attempt 2 was handed to session w, which has not said that it began":                                       {Status: operation.StatusDispatched, Attempt: 2, Session: "w"},
	} {
		s.Request = request
		if got := query.Why(&s); got != want {
			t.Errorf("expected %q, but got %q", want, got)
		}
	}
	for _, status := range []operation.Status{operation.StatusRunning, operation.StatusSucceeded, operation.StatusFailed, operation.StatusCanceled} {
		if got := query.Why(&operation.State{Status: status, Request: request, Failure: failure}); got != "" {
			t.Errorf("%s: expected nothing to explain, but got %q", status, got)
		}
	}
	panicked := operation.State{Status: operation.StatusWaiting, Holds: operation.HoldRetry, Until: at, Request: request, Failure: &operation.Failure{Message: "the handler panicked: nil map\ngoroutine 7 [running]:\nmain.main()"}}
	if got, want := query.Why(&panicked), "will be retried at 2031-01-01T00:00:00Z after: the handler panicked: nil map…"; got != want {
		t.Errorf("expected %q, but got %q", want, got)
	}
	long := operation.State{Status: operation.StatusWaiting, Holds: operation.HoldRetry, Request: request, Failure: &operation.Failure{Message: strings.Repeat("ä", 50_000)}}
	if got := query.Why(&long); len(got) > 300 {
		t.Errorf("expected a sentence, but got %d bytes", len(got))
	}
}

func TestClient(t *testing.T) {
	w := newWorld(t)
	w.submit(0, `{"id":"../x","organization":"o/1","type":"import"}`)
	w.do(0, operation.Command{Kind: operation.Pause, Org: "o/1", ID: "../x"})
	for i := range 5 {
		w.simple(fmt.Sprintf("a%d", i), "import")
	}
	server := httptest.NewServer(w.h)
	defer server.Close()
	c := &api.Client{Base: server.URL, HTTP: server.Client()}
	o, err := c.Get(t.Context(), "o/1", "../x", api.Call{After: "0-6", Wait: time.Second})
	if err != nil || o.Wait != "paused" {
		t.Errorf("expected the operation, but got %+v, %v", o, err)
	}
	var events []string
	for e, err := range c.History(t.Context(), "o/1", "../x", api.Call{}) {
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, e.Event)
	}
	if !slices.Equal(events, []string{"requested", "paused"}) {
		t.Errorf("expected the history, but got %q", events)
	}
	n := 0
	for _, err := range c.List(t.Context(), url.Values{"limit": {"2"}, "status": {"ready,waiting"}}, api.Call{}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 6 {
		t.Errorf("expected six over three pages, but got %d", n)
	}
	for _, err := range c.List(t.Context(), url.Values{"limit": {"0"}}, api.Call{}) {
		var p *api.Problem
		if !errors.As(err, &p) || p.Code != api.InvalidParameter || p.Status != http.StatusBadRequest {
			t.Errorf("expected invalid_parameter, but got %v", err)
		}
	}
	if counts, err := c.Counts(t.Context(), "acme", api.Call{}); err != nil || counts.Total != 5 {
		t.Errorf("expected five, but got %+v, %v", counts, err)
	}
}
