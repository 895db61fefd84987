package query_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/internal/api/apitest"
	"github.com/opstream/opstream/projections/projector"
	"github.com/opstream/opstream/projections/query"
)

// listen opens a stream over a real connection and returns its events.
func listen(t *testing.T, w *world, server *httptest.Server, filter url.Values, lastEventID string) <-chan api.ServerEvent {
	t.Helper()
	events := make(chan api.ServerEvent)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(events)
		c := &api.Client{Base: server.URL}
		_ = c.Events(ctx, filter, lastEventID, func(e api.ServerEvent) error {
			switch e.Name {
			case "operation":
				w.contract.Valid(t, "Change", e.Data)
			case "counts":
				w.contract.Valid(t, "Counts", e.Data)
			}
			select {
			case events <- e:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return events
}

// serve starts a server that is closed after the streams that are opened later.
func serve(t *testing.T, h http.Handler) *httptest.Server {
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server
}

func change(t *testing.T, e api.ServerEvent) api.Change {
	t.Helper()
	var c api.Change
	if err := json.Unmarshal(e.Data, &c); err != nil || e.Name != "operation" || e.ID == "" {
		t.Fatalf("expected a change, but got %s %s %s", e.Name, e.ID, e.Data)
	}
	return c
}

func TestChangesAreHeard(t *testing.T) {
	w := newWorld(t)
	server := serve(t, w.h)
	// The last id of nothing gets a reset, which also says that the listener is there.
	all := listen(t, w, server, nil, "nothing-1")
	if e := <-all; e.Name != "reset" {
		t.Fatalf("expected a reset, but got %s", e.Name)
	}
	one := listen(t, w, server, url.Values{"organization": {"acme"}, "id": {"b"}}, "nothing-1")
	<-one
	other := listen(t, w, server, url.Values{"organization": {"other"}}, "nothing-1")
	<-other

	w.simple("a", "import")
	w.simple("b", "import", operation.Command{Kind: operation.Pause})
	w.submit(1, `{"id":"b","organization":"other","type":"import"}`)

	var got []string
	for range 4 {
		c := change(t, <-all)
		got = append(got, c.Organization+"/"+c.ID+" "+c.Status+" "+c.Wait)
	}
	if want := "acme/a ready resources, acme/b ready resources, acme/b waiting paused, other/b ready resources"; strings.Join(got, ", ") != want {
		t.Errorf("expected %s, but got %s", want, strings.Join(got, ", "))
	}
	if c := change(t, <-one); c.ID != "b" || c.Status != "ready" {
		t.Errorf("expected b only, but got %+v", c)
	}
	if c := change(t, <-one); c.ID != "b" || c.Status != "waiting" || c.Position != "0-2" {
		t.Errorf("expected b only, but got %+v", c)
	}
	if c := change(t, <-other); c.Organization != "other" {
		t.Errorf("expected organization other only, but got %+v", c)
	}
}

// Who comes back hears what it has missed, once, and nothing else.
func TestListeningAgain(t *testing.T) {
	w := newWorld(t)
	server := serve(t, w.h)
	w.simple("a", "import")
	events := listen(t, w, server, nil, "nothing-1")
	reset := <-events
	w.simple("b", "import")
	b := <-events
	w.simple("c", "import")
	w.simple("d", "import")

	again := listen(t, w, server, nil, b.ID)
	if c, d := change(t, <-again), change(t, <-again); c.ID != "c" || d.ID != "d" {
		t.Errorf("expected c and d, but got %s and %s", c.ID, d.ID)
	}
	fromReset := listen(t, w, server, nil, reset.ID)
	if c := change(t, <-fromReset); c.ID != "b" {
		t.Errorf("expected b, which came after the reset, but got %s", c.ID)
	}
}

func TestLastEventIDsThatCannotBe(t *testing.T) {
	f := query.NewFeed()
	f.Publish([]api.Change{{ID: "a"}})
	sub := f.Subscribe(query.Interest{})
	known := sub.Take().At // of this feed, after one change
	epoch, _, _ := strings.Cut(known, "-")
	for id, reset := range map[string]bool{
		known: false, epoch + "-0": false, epoch + "-2": true, epoch + "--1": true, epoch + "-": true, epoch: true, "other-1": true,
		epoch + "-18446744073709551615": true, epoch + "-18446744073709551616": true, strings.Repeat("x", 10<<10): true,
	} {
		if taken := f.Subscribe(query.Interest{LastEventID: id}).Take(); taken.Reset != reset {
			t.Errorf("%.40s: expected reset %v, but got %v", id, reset, taken.Reset)
		}
	}
}

// The ring forgets, and who is further behind than that or than a buffer is told to read again.
func TestTheRingForgets(t *testing.T) {
	f := query.NewFeed()
	publish := func(n int) {
		for range n {
			f.Publish([]api.Change{{Organization: "acme", ID: "a"}})
		}
	}
	start := f.Subscribe(query.Interest{}).Take().At
	publish(1000)
	if taken := f.Subscribe(query.Interest{LastEventID: start}).Take(); taken.Reset || len(taken.Items) != 1000 || taken.Items[0].Seq != 1 {
		t.Errorf("expected 1000 changes, but got %d, reset %v", len(taken.Items), taken.Reset)
	}
	publish(1000)
	if taken := f.Subscribe(query.Interest{LastEventID: start}).Take(); !taken.Reset || len(taken.Items) != 0 || taken.Err != nil {
		t.Errorf("expected a reset instead of more than a buffer, but got %d, reset %v, %v", len(taken.Items), taken.Reset, taken.Err)
	}
	middle := f.Subscribe(query.Interest{}).Take().At
	publish(8192)
	if taken := f.Subscribe(query.Interest{LastEventID: middle, Organization: "other"}).Take(); taken.Reset {
		t.Error("expected the ring to reach back 8192 changes")
	}
	publish(1)
	if taken := f.Subscribe(query.Interest{LastEventID: middle, Organization: "other"}).Take(); !taken.Reset {
		t.Error("expected a reset after 8193 changes")
	}
}

// slowWriter takes nothing until it is let.
type slowWriter struct {
	header  http.Header
	written chan string
}

func (w *slowWriter) Header() http.Header { return w.header }
func (w *slowWriter) WriteHeader(int)     {}
func (w *slowWriter) Write(b []byte) (int, error) {
	w.written <- string(b)
	return len(b), nil
}

// A client that does not read is dropped and told so; the feed and the others do not wait for it.
func TestASlowClientIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := query.NewFeed()
		q := query.New(query.Config{Feed: feed, Progress: newLevel()})
		h := apitest.Load(t, "query").Handler(t, q.Routes())
		slow := &slowWriter{header: http.Header{}, written: make(chan string)}
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.ServeHTTP(slow, httptest.NewRequestWithContext(t.Context(), "GET", "/v1/events", nil))
		}()
		if hello := <-slow.written; !strings.HasPrefix(hello, "retry:") {
			t.Errorf("expected the time to come back after, but got %q", hello)
		}
		synctest.Wait()
		feed.Publish([]api.Change{{ID: "first"}})
		synctest.Wait() // it is stuck in writing this
		quick := feed.Subscribe(query.Interest{})
		for i := range 1025 {
			feed.Publish([]api.Change{{ID: fmt.Sprint(i)}})
			if taken := quick.Take(); len(taken.Items) != 1 || taken.Err != nil {
				t.Fatalf("expected the quick one to hear everything, but got %d, %v", len(taken.Items), taken.Err)
			}
		}
		if first := <-slow.written; !strings.Contains(first, `"id":"first"`) {
			t.Errorf("expected the first change, but got %q", first)
		}
		if last := <-slow.written; !strings.HasPrefix(last, "event: dropped\n") || !strings.Contains(last, "did not keep up") {
			t.Errorf("expected the final event, but got %q", last)
		}
		<-done
	})
}

// A silent stream shows that it lives, and moves the last event id forward.
func TestHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		feed := query.NewFeed()
		q := query.New(query.Config{Feed: feed, Progress: newLevel(), Heartbeat: 15 * time.Second})
		h := apitest.Load(t, "query").Handler(t, q.Routes())
		w := &slowWriter{header: http.Header{}, written: make(chan string)}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/v1/events?organization=quiet", nil))
		}()
		<-w.written
		began := time.Now()
		feed.Publish([]api.Change{{Organization: "loud", ID: "a"}})
		beat := <-w.written
		if time.Since(began) != 15*time.Second || !strings.HasSuffix(beat, ": alive\n\n") || !strings.Contains(beat, "-1\n") {
			t.Errorf("expected a comment with the feed's last id after 15 s, but got %q after %s", beat, time.Since(began))
		}
		cancel()
		<-done
	})
}

// listenToCounts opens a stream of counts in a bubble. Each call of the function that is returned waits for the next total.
func listenToCounts(t *testing.T, w *world) (total func() int64) {
	t.Helper()
	out := &slowWriter{header: http.Header{}, written: make(chan string)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.h.ServeHTTP(out, httptest.NewRequestWithContext(ctx, http.MethodGet, "/v1/events?events=counts", nil))
	}()
	t.Cleanup(func() {
		for cancel(); ; {
			select {
			case <-out.written: // which a test that failed has not waited for
			case <-done:
				return
			}
		}
	})
	<-out.written // where it stands
	return func() int64 {
		t.Helper()
		said := <-out.written
		_, data, _ := strings.Cut(said, "data: ")
		var c api.Counts
		if err := json.Unmarshal([]byte(data), &c); err != nil || !strings.Contains(said, "event: counts\n") {
			t.Fatalf("expected counts, but got %q", said)
		}
		w.contract.Valid(t, "Counts", []byte(data))
		return c.Total
	}
}

// Counts come at the beginning, then when something has changed, and not more often than every second.
func TestCountsAreHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.simple("a", "import")
		total := listenToCounts(t, w)
		if n := total(); n != 1 {
			t.Errorf("expected 1, but got %d", n)
		}
		first := time.Now()
		w.simple("b", "import")
		synctest.Wait()
		w.simple("c", "import")
		if n := total(); n != 3 || time.Since(first) != time.Second {
			t.Errorf("expected 3 after a second, but got %d after %s", n, time.Since(first))
		}
	})
}

// Counts that could not be read when they were due are read a second later, though nothing has changed.
func TestCountsAreHeardThoughTheTablesWereAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.simple("a", "import")
		began := time.Now()
		w.store.fails(errors.New("away"))
		total := listenToCounts(t, w)
		synctest.Wait()
		w.store.fails(nil)
		if n := total(); n != 1 || time.Since(began) != time.Second {
			t.Errorf("expected 1 after a second, but got %d after %s", n, time.Since(began))
		}
	})
}

// What was counted for one before a change is not the last that another hears after it.
func TestCountsAreHeardByAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.simple("a", "import")
		began := time.Now()
		one := listenToCounts(t, w) // has them counted at 0 s, 1 s and so on
		if n := one(); n != 1 {
			t.Errorf("expected 1, but got %d", n)
		}
		time.Sleep(600 * time.Millisecond)
		w.simple("b", "import")
		other := listenToCounts(t, w) // is told the same at once
		for n := other(); n != 2; n = other() {
			if n != 1 || time.Since(began) > 1600*time.Millisecond {
				t.Fatalf("expected 1, and 2 at 1.6 s, but got %d after %s", n, time.Since(began))
			}
		}
		if n := one(); n != 2 {
			t.Errorf("expected 2, but got %d", n)
		}
		time.Sleep(time.Until(began.Add(2300 * time.Millisecond)))
		w.simple("c", "import")
		if n := one(); n != 3 {
			t.Errorf("expected 3, but got %d", n)
		}
		if n := other(); n != 3 || time.Since(began) != 2600*time.Millisecond {
			t.Errorf("expected 3 at 2.6 s, but got %d after %s", n, time.Since(began))
		}
	})
}

func TestListenersAreBounded(t *testing.T) {
	w := newWorld(t) // of three
	server := serve(t, w.h)
	for range 3 {
		<-listen(t, w, server, nil, "nothing-1")
	}
	p := w.get("/v1/events").Problem(t)
	if p.Code != api.TooManyListeners || !p.Retryable {
		t.Errorf("expected too_many_listeners, but got %+v", p)
	}
}

func TestAStoppingProcessSaysGoodbye(t *testing.T) {
	w := newWorld(t)
	server := serve(t, w.h)
	events := listen(t, w, server, nil, "nothing-1")
	<-events
	byID := w.feed.Subscribe(query.Interest{Organization: "acme", ID: "a"})
	w.feed.Close()
	if e := <-events; e.Name != "dropped" {
		t.Errorf("expected dropped, but got %s", e.Name)
	}
	if _, more := <-events; more {
		t.Error("expected the stream to end")
	}
	if err := byID.Take().Err; !errors.Is(err, query.ErrClosed) {
		t.Errorf("expected the end, but got %v", err)
	}
	if err := w.feed.Subscribe(query.Interest{}).Take().Err; !errors.Is(err, query.ErrClosed) {
		t.Errorf("expected the end at once, but got %v", err)
	}
}

func TestEventsRefuseWhatCannotBe(t *testing.T) {
	w := newWorld(t)
	for query, field := range map[string]string{
		"id=a": "organization", "events=all": "events", "events=": "events", "events=operation,counts,x": "events",
		"events=counts&organization=acme&id=a": "events", "after=0-1": "after",
	} {
		if p := w.get("/v1/events?" + query).Problem(t); p.Status != 400 || p.Field != field {
			t.Errorf("%s: expected 400 for %s, but got %+v", query, field, p)
		}
	}
}

func BenchmarkPublish(b *testing.B) {
	f := query.NewFeed()
	for range 3 {
		f.Subscribe(query.Interest{SignalOnly: true})
	}
	batch := make([]api.Change, 1000)
	for i := range batch {
		batch[i] = api.Change{Organization: "acme", ID: fmt.Sprint(i), Type: "import", Standing: api.StandingOf(operation.StatusReady)}
	}
	b.ReportAllocs()
	for b.Loop() {
		f.Publish(batch)
	}
}

// A listener that loses its connection before anything has come knows from where to listen again, and misses nothing.
func TestStreamBeginsWithWhereItStands(t *testing.T) {
	w := newWorld(t)
	server := serve(t, w.h)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	id := ""
	for lines := bufio.NewScanner(resp.Body); lines.Scan() && lines.Text() != ""; {
		if text, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			id = text
		}
	}
	if id == "" {
		t.Fatal("expected an id at the beginning of the stream, but there is none")
	}
	cancel()
	w.simple("a", "import")
	if c := change(t, <-listen(t, w, server, nil, id)); c.ID != "a" {
		t.Errorf("expected to hear of what happened meanwhile, but heard of %s", c.ID)
	}
}

// busy is tables that move on while they are asked where they stand.
type busy struct {
	query.Progress
	move func()
}

func (b busy) AsOf(ctx context.Context) (api.Positions, time.Duration, error) {
	positions, lag, err := b.Progress.AsOf(ctx)
	b.move()
	return positions, lag, err
}

// A listener hears of all that is not in the positions which the stream says it begins with.
func TestStreamBeginsWithThePositionsItNames(t *testing.T) {
	w := newWorld(t)
	w.simple("a", "import")
	w.config.Progress = busy{w.held, sync.OnceFunc(func() { w.simple("b", "import") })}
	server := serve(t, w.contract.Handler(t, query.New(w.config).Routes()))
	c := change(t, <-listen(t, w, server, nil, ""))
	if c.ID != "b" || c.Position != "0-1" {
		t.Errorf("expected to hear of what came after the positions, but got %+v", c)
	}
}

// Until the projector knows where the tables stand, nobody is told that they stand nowhere and are level.
func TestNoPositionsBeforeTheProjectorHasBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p, err := projector.New(projector.Config{Store: w.store})
		if err != nil {
			t.Fatal(err)
		}
		w.config.Progress = query.Projected{Projector: p}
		h := w.contract.Handler(t, query.New(w.config).Routes())
		for _, path := range []string{"/v1/events", "/v1/operations", "/v1/counts"} {
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
			if rec.Code != http.StatusServiceUnavailable || rec.Header().Get(api.HeaderAsOf) != "" {
				t.Errorf("%s: expected 503 and no positions, but got %d %q", path, rec.Code, rec.Header())
			}
		}
	})
}
