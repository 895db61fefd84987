package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/opstream/opstream/consumers/worker"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/internal/faultproxy"
	"github.com/opstream/opstream/projections/query"
)

// running is a command line that runs in this process until it is stopped.
type running struct {
	t        testing.TB
	url, ops string
	log      *lockedText
	stop     context.CancelFunc
	ended    chan int
}

// lockedText is a buffer that goroutines write to.
type lockedText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

var opsAddress = regexp.MustCompile(`operations listener" address=(\S+)`)

// begin runs a command that says where its API is, with an operations listener.
func begin(t testing.TB, args ...string) *running {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	r := &running{t: t, log: &lockedText{}, stop: stop, ended: make(chan int, 1)}
	in, out := io.Pipe()
	go func() {
		code := execute(ctx, append(args, "--ops-listen", "127.0.0.1:0", "--log", "info"), strings.NewReader(""), out, r.log)
		_ = out.Close() // of a pipe: never fails
		r.ended <- code
	}()
	t.Cleanup(func() { r.end() })
	urls := make(chan string, 16)
	go func() {
		defer close(urls)
		for lines := bufio.NewScanner(in); lines.Scan(); {
			if i := strings.Index(lines.Text(), "http"); i >= 0 {
				urls <- strings.TrimSpace(lines.Text()[i:])
			}
		}
	}()
	select {
	case url, ok := <-urls:
		if !ok {
			t.Fatalf("expected the service to run, but it ended\n%s", r.log)
		}
		r.url = url
	case <-time.After(time.Minute):
		t.Fatalf("expected the service to run within a minute\n%s", r.log)
	}
	if at := opsAddress.FindStringSubmatch(r.log.String()); at != nil {
		r.ops = "http://" + at[1]
	}
	return r
}

// end stops the command and returns its exit code.
func (r *running) end() int {
	r.stop()
	code := <-r.ended
	r.ended <- code
	return code
}

// get returns status and body.
func (r *running) get(path string) (int, string) {
	r.t.Helper()
	resp, err := http.Get(path)
	if err != nil {
		r.t.Fatalf("%v\n%s", err, r.log)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// scraped is what /metrics says: values by series, and types by name.
type scraped struct {
	values map[string]string
	kinds  map[string]string
}

func (r *running) scrape() scraped {
	r.t.Helper()
	status, body := r.get(r.ops + "/metrics")
	if status != http.StatusOK {
		r.t.Fatalf("expected metrics, but got %d %s", status, body)
	}
	s := scraped{map[string]string{}, map[string]string{}}
	for line := range strings.Lines(body) {
		line = strings.TrimSpace(line)
		if kind, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ := strings.Cut(kind, " ")
			s.kinds[name] = kind
		} else if i := strings.LastIndexByte(line, ' '); i > 0 && !strings.HasPrefix(line, "#") {
			s.values[line[:i]] = line[i+1:]
		}
	}
	return s
}

func TestOperationsListener(t *testing.T) {
	withoutOptions(t)
	r := begin(t, "dev", "--data", t.TempDir(), "--kafka", "127.0.0.1:0", "--listen", "127.0.0.1:0")
	eventually(t, 30*time.Second, func() (bool, string) {
		status, body := r.get(r.ops + "/readyz")
		return status == http.StatusOK, body
	})
	if status, body := r.get(r.ops + "/livez"); status != http.StatusOK || !strings.Contains(body, `"ok":true`) {
		t.Errorf("expected the process to be alive, but got %d %s", status, body)
	}
	for _, path := range []string{"/", "/v1/operations", "/debug/pprof/"} {
		if status, _ := r.get(r.ops + path); status != http.StatusNotFound {
			t.Errorf("expected nothing else at the operations listener, but %s is answered with %d", path, status)
		}
	}
	r.get(r.url + "/v1/status") // submit's requests are streams
	const n = 20
	for i := range n {
		run(t, fmt.Sprintf(`{"organization": "secret-organization", "id": "secret-%d", "type": "noop"}`, i), "op", "submit", "--server", r.url, "--from", "-").expect(t, exitOK)
	}
	run(t, `{"organization": "o", "id": "u", "type": "nobody-serves-this"}`, "op", "submit", "--server", r.url, "--from", "-").expect(t, exitOK)
	eventually(t, 30*time.Second, func() (bool, string) {
		v := r.scrape().values
		for series, want := range map[string]string{
			`opstream_handler_runs_total{outcome="succeeded",type="noop"}`: fmt.Sprint(n),
			`opstream_handler_seconds_count{type="noop"}`:                  fmt.Sprint(n),
			`opstream_worker_attempts_total{outcome="succeeded"}`:          fmt.Sprint(n),
			`opstream_scheduler_operations_live`:                           "1",
			`opstream_scheduler_operations_ready{served="no"}`:             "1",
			`opstream_scheduler_operations_ready{served="yes"}`:            "0",
			`opstream_scheduler_operations_waiting{reason="resources"}`:    "1",
			`opstream_scheduler_requests_undecided`:                        "0",
			`opstream_scheduler_partitions_active`:                         "4",
			`opstream_scheduler_recovery_seconds_count`:                    "4",
			`opstream_projector_lag_offsets`:                               "0",
			`opstream_projector_failing`:                                   "0",
			`opstream_worker_slots`:                                        "256",
			`opstream_worker_slots_free`:                                   "256",
		} {
			if v[series] != want {
				return false, fmt.Sprintf("expected %s %s, but got %q", series, want, v[series])
			}
		}
		return true, ""
	})

	// The table, the registry and what is served agree.
	s := r.scrape()
	known := map[string]string{}
	for _, m := range metricTable() {
		known[m.name] = m.kind
		if s.kinds[m.name] != m.kind {
			t.Errorf("expected %s to be served as %s, but it is %q", m.name, m.kind, s.kinds[m.name])
		}
	}
	for name := range s.kinds {
		if known[name] == "" && !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") && !strings.HasPrefix(name, "promhttp_") {
			t.Errorf("expected only metrics of the table, but %s is none", name)
		}
	}
	for series := range s.values {
		if strings.Contains(series, "secret") || strings.Contains(series, "nobody-serves-this") {
			t.Errorf("expected no name that a caller chose in a label, but got %s", series)
		}
	}
	if code := r.end(); code != exitOK {
		t.Errorf("expected a clean end, but got exit code %d\n%s", code, r.log)
	}
}

// TestReadiness: what /livez and /readyz say while a process starts, works, stops, and fails.
func TestReadiness(t *testing.T) {
	g := newGroup()
	ctx, cancel := context.WithCancel(context.Background())
	o := &operations{group: g, stopping: ctx, roles: []string{roleWorker}}
	m := newMetrics(&o.service)
	server := httptest.NewServer(o.handler(m, slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)))
	defer server.Close()
	expect := func(path string, status int, reason string) {
		t.Helper()
		resp, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var h health
		if err := json.NewDecoder(resp.Body).Decode(&h); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != status || h.OK != (status == http.StatusOK) || !strings.Contains(h.Reason, reason) || !slices.Equal(h.Roles, o.roles) {
			t.Errorf("%s: expected %d %q, but got %d %+v", path, status, reason, resp.StatusCode, h)
		}
	}
	w, err := worker.New(worker.Config{Brokers: []string{"127.0.0.1:1"}, Handlers: map[string]worker.Handler{"x": worker.HandlerFunc(func(context.Context, *worker.Operation) (any, error) { return nil, nil })}})
	if err != nil {
		t.Fatal(err)
	}
	expect("/readyz", http.StatusServiceUnavailable, "starts")
	expect("/livez", http.StatusOK, "")
	o.serve(&service{worker: w, reach: newReach(slog.New(slog.DiscardHandler))})
	expect("/readyz", http.StatusServiceUnavailable, "no session")
	w.Counters().Heartbeats.Add(1)
	expect("/readyz", http.StatusOK, "")
	fails := make(chan struct{})
	g.start("part", func(context.Context) error {
		<-fails
		return errors.New("broken")
	})
	expect("/livez", http.StatusOK, "")
	close(fails)
	<-g.ended
	expect("/livez", http.StatusServiceUnavailable, "ended by itself")
	expect("/readyz", http.StatusServiceUnavailable, "ended by itself")
	// Told to stop, its parts end one after another, and nobody should kill it for that.
	cancel()
	expect("/livez", http.StatusOK, "")
	expect("/readyz", http.StatusServiceUnavailable, "stops")
	if g.stop() == nil {
		t.Error("expected the part's error")
	}
	var none *operations
	none.serve(&service{}) // without a listener nothing happens
}

// speechless is the progress of tables whose database takes questions and answers none.
type speechless struct{ query.Progress }

func (speechless) AsOf(ctx context.Context) (api.Positions, time.Duration, error) {
	<-ctx.Done()
	return nil, 0, ctx.Err()
}

// TestReadinessOfASilentDatabase: an operator holds a lock on the tables, or the way to the database is lost without a word. Whoever
// asks an API for its readiness is answered while he still listens, and told that commands may go on.
func TestReadinessOfASilentDatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{follower: &query.Follower{}, progress: speechless{}, reach: newReach(slog.New(slog.DiscardHandler)), cfg: serviceConfig{roles: []string{roleAPI}}}
		s.was.Store(true)
		probe, cancel := context.WithTimeout(t.Context(), 3*time.Second) // as opstream ready does; the chart's probes take 5 s
		defer cancel()
		if ok, err := s.serves(probe); !ok || err == nil || !strings.Contains(err.Error(), "not answered") || probe.Err() != nil {
			t.Errorf("expected the API to be ready, and to say that its database does not answer, in time, but got %t, %v; the probe: %v", ok, err, probe.Err())
		}
	})
}

// TestAPIMetrics: routes are named by their pattern, whatever the caller sends.
func TestAPIMetrics(t *testing.T) {
	m := newMetrics(&(&operations{}).service)
	routes := []api.Route{
		{Method: http.MethodGet, Path: "/v1/things/{id}", Handle: func(w http.ResponseWriter, r *http.Request) error {
			switch r.PathValue("id") {
			case "busy":
				return api.NewProblem(api.Overloaded, "later")
			case "cut":
				// invariant: net/http's own signal to cut a connection
				panic(http.ErrAbortHandler)
			}
			return api.WriteJSON(w, http.StatusOK, 1)
		}},
		{Method: http.MethodGet, Path: "/v1/stream", Stream: true, Handle: func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(http.StatusEarlyHints)
			_, err := w.Write([]byte("x"))
			return errors.Join(err, http.NewResponseController(w).Flush())
		}},
	}
	server := httptest.NewServer(m.api(routes, api.Handler(slog.New(slog.DiscardHandler), routes...)))
	defer server.Close()
	for _, c := range []struct{ method, path string }{
		{"GET", "/v1/things/1"},
		{"GET", "/v1/things/2"},
		{"GET", "/v1/things/busy"},
		{"GET", "/v1/things/cut"},
		{"DELETE", "/v1/things/1"},
		{"GET", "/v1/things/1?no=1"},
		{"BREW", "/v1/things/1"},
		{"GET", "/nowhere/" + strings.Repeat("x", 100)},
		{"GET", "/v1/stream"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, server.URL+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Close = true // a client repeats a request that breaks off on a connection that it used before
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body) // also of an answer that breaks off
			resp.Body.Close()
		}
	}
	got := map[string]float64{}
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			var labels []string
			for _, l := range metric.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			switch f.GetName() {
			case "opstream_api_requests_total":
				got[strings.Join(labels, " ")] = metric.GetCounter().GetValue()
			case "opstream_api_seconds":
				got["seconds "+strings.Join(labels, " ")] = float64(metric.GetHistogram().GetSampleCount())
			}
		}
	}
	const things = "/v1/things/{id}"
	for series, want := range map[string]float64{
		"GET " + things + " 200": 2, "GET " + things + " cut": 1, "GET " + things + " 429": 1, "DELETE " + things + " 405": 1, "GET " + things + " 400": 1, "other " + things + " 405": 1,
		"GET none 404": 1, "GET /v1/stream 200": 1, "seconds " + things: 7, "seconds none": 1,
	} {
		if got[series] != want {
			t.Errorf("%s: expected %v, but got %v", series, want, got[series])
		}
		delete(got, series)
	}
	if len(got) > 0 {
		t.Errorf("expected nothing else, but got %v", got)
	}
}

// TestHandlerMetrics: what a handler returned is what is counted, a panic too, and passed on as it was.
func TestHandlerMetrics(t *testing.T) {
	m := newMetrics(&(&operations{}).service)
	var next func() (any, error)
	all := m.handlers(map[string]worker.Handler{"t": worker.HandlerFunc(func(context.Context, *worker.Operation) (any, error) { return next() })})
	failure := errors.New("no")
	for outcome, does := range map[string]func() (any, error){
		"succeeded": func() (any, error) { return 1, nil },
		"failed":    func() (any, error) { return nil, fmt.Errorf("wrapped: %w", failure) },
		"yielded":   func() (any, error) { return nil, &worker.YieldError{Event: "e"} },
		"canceled":  func() (any, error) { return nil, &worker.CanceledError{Err: failure} },
		"panicked":  func() (any, error) { panic("at the handler") },
	} {
		next = does
		func() {
			defer func() {
				if p := recover(); (p != nil) != (outcome == "panicked") {
					t.Errorf("%s: expected only a handler's own panic to come through, but got %v", outcome, p)
				}
			}()
			result, err := all["t"].Handle(t.Context(), nil)
			if outcome == "succeeded" && result != 1 || outcome == "failed" && !errors.Is(err, failure) {
				t.Errorf("%s: expected what the handler returned, but got %v, %v", outcome, result, err)
			}
		}()
		if got := valueOf(t, m.runs.WithLabelValues("t", outcome)); got != 1 {
			t.Errorf("%s: expected it to be counted once, but it was %v times", outcome, got)
		}
	}
	var none *metrics
	if h := none.handlers(all); len(h) != 1 || h["t"] != all["t"] {
		t.Error("expected handlers to stay as they are when nobody asks")
	}
	none.committed(nil)
}

// valueOf is a counter's value.
func valueOf(t testing.TB, c prometheus.Metric) float64 {
	t.Helper()
	var out dto.Metric
	if err := c.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.GetCounter().GetValue()
}

func TestReadmeHasTheMetrics(t *testing.T) {
	var b strings.Builder
	b.WriteString("| metric | type | labels | role | |\n| --- | --- | --- | --- | --- |\n")
	for _, m := range metricTable() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", m.name, m.kind, strings.ReplaceAll(m.labels, " ", ", "), m.role, m.help)
	}
	section(t, "metrics", b.String())
}

// BenchmarkMeasuredHandler is what counting costs each run of a handler: two readings of the clock and two additions.
func BenchmarkMeasuredHandler(b *testing.B) {
	plain := map[string]worker.Handler{"t": worker.HandlerFunc(func(context.Context, *worker.Operation) (any, error) { return nil, nil })}
	for name, h := range map[string]worker.Handler{"plain": plain["t"], "measured": newMetrics(&(&operations{}).service).handlers(plain)["t"]} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := h.Handle(b.Context(), nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestNotReadyBeforeItHasItsPlace: a scheduler and a worker that nobody has heard of yet do not let a rollout go on, although nothing has
// failed so far: the broker takes their connections and says nothing.
func TestNotReadyBeforeItHasItsPlace(t *testing.T) {
	t.Parallel()
	in, proxy := newInstallation(t, t.TempDir()), proxied(t, "")
	brokerBehind(t, proxy, in)
	proxy.Stall(faultproxy.Both)
	roles := map[string]string{roleScheduler: "no place in its group", roleWorker: "no session"}
	daemons, addresses := map[string]*daemon{}, map[string]string{}
	for role := range roles {
		addresses[role] = freePort(t)
		daemons[role] = daemonOf(t, role, "serve", "--roles", role, "--brokers", proxy.Address(), "--ops-listen", addresses[role], "--log", "warn")
		daemons[role].launch()
	}
	for role, reason := range roles {
		daemons[role].up()
		if got := readyz(t, "http://"+addresses[role]); !strings.HasPrefix(got, "503") || !strings.Contains(got, reason) && !strings.Contains(got, "no broker of Kafka has answered") {
			t.Errorf("%s: expected it to wait for its place, but got %s", role, got)
		}
	}
	proxy.Resume(faultproxy.Both)
	for role, address := range addresses {
		eventually(t, time.Minute, func() (bool, string) {
			got := readyz(t, "http://"+address)
			return strings.HasPrefix(got, "200"), role + ": " + got
		})
	}
}
