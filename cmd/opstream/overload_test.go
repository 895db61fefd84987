package main

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/projector"
)

// The load of TestOverload. Handlers only wait, so what the service can do follows from their number and not from the machine:
// overloadServed operations a second. Kafka's producer alone asks for three quarters of that; what comes over HTTP is several times
// too much.
const (
	overloadSlots   = 64
	overloadSleep   = 100 * time.Millisecond
	overloadServed  = int(overloadSlots * time.Second / overloadSleep)
	overloadClients = 24 // of single submissions, which send the next as soon as they have an answer
	overloadBatches = 2  // connections that pour in lines
	overloadPayload = 1024
	overloadBacklog = 500 // --backlog-max: ready operations of a partition
)

// overloadMemoryMax is what the whole process may have resident, in MiB. It follows from the configuration. On the heap, at most:
//
//	80  inputs that wait to be decided: 8192 requests of 2 KiB and 8192 reports of 500 bytes in each of 4 partitions (scheduler.Config.QueueMax)
//	16  live operations: in each partition 500 (--backlog-max), and what the worker holds; 4 KiB each
//	64  ids that are remembered: 262144 a partition, of some 60 bytes (partition.Config.KnownMax)
//	16  two batches (8 MiB each); single submissions are few here, and 64 MiB at most (command.Config.BodyBytes)
//	64  fetched and not yet taken: 16 MiB for each of the readers, scheduler, projector, answers, worker
//	56  the projector: a batch of 20000 events of 2 KiB, and the live operations once more
//	16  the embedded broker, which remembers some 50 bytes of every batch that it ever took, and buffers of connections
//
// and three times that, because the program lets the heap grow to three times what lives (debug.SetGCPercent in main). Outside of it
// 64 for SQLite's cache and 64 for the program itself. How much waits on the log plays no part.
const overloadMemoryMax = 3*(80+16+64+16+64+56+16) + 64 + 64

// overloadTime is how long the flood lasts.
func overloadTime(t testing.TB) time.Duration {
	const seconds = 10
	text := os.Getenv("OPSTREAM_OVERLOAD_SECONDS")
	n, err := strconv.Atoi(cmp.Or(text, strconv.Itoa(seconds)))
	if err != nil || n < 5 {
		t.Fatalf("expected OPSTREAM_OVERLOAD_SECONDS to be a number of seconds, at least 5, but it is %q", text)
	}
	return time.Duration(n) * time.Second
}

// flood is what was asked of a service that cannot keep up, and what it said.
type flood struct {
	*installation
	http *http.Client
	stop chan struct{}

	mu         sync.Mutex
	answered   map[string]bool // over HTTP, by id: true accepted, false of unknown outcome
	took       []time.Duration // of accepted answers
	tookNow    []time.Duration // the same, since the last line of the table
	said       map[int]int     // answers to single submissions by HTTP status
	saidNow    map[int]int
	refusal    []time.Duration // how long a refusal took
	retryAfter map[int]int     // seconds that refusals named
	batchLines map[bool]int    // by whether they were accepted
	faults     []string        // answers that the contract does not know

	produced atomic.Int64 // over Kafka, acknowledged
}

func (f *flood) fault(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.faults) < 20 {
		f.faults = append(f.faults, fmt.Sprintf(format, args...))
	}
}

// work is one request of the flood.
func (f *flood) work(id string) *producers.Request {
	return &producers.Request{
		ID: id, Organization: "org-" + id[len(id)-1:], Type: "noop",
		Data: map[string]any{"sleepMs": overloadSleep.Milliseconds(), "result": strings.Repeat("x", overloadPayload)},
	}
}

// submit asks for an operation over HTTP, and returns the answer's status and, with a refusal, when to come again.
func (f *flood) submit(ctx context.Context, id string) (status int, again time.Duration) {
	q := f.work(id)
	body, err := json.Marshal(map[string]any{"id": q.ID, "organization": q.Organization, "type": q.Type, "data": q.Data})
	if err != nil {
		f.fault("%v", err)
		return 0, 0
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.url+"/v1/operations", bytes.NewReader(body))
	if err != nil {
		f.fault("%v", err)
		return 0, 0
	}
	req.Header.Set("Content-Type", "application/json")
	began := time.Now()
	resp, err := f.http.Do(req)
	if err != nil {
		if ctx.Err() == nil {
			f.fault("%s: no answer: %v", id, err)
		}
		return 0, 0
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	took := time.Since(began)
	if err != nil {
		f.fault("%s: %v", id, err)
		return 0, 0
	}
	var problem api.Problem
	if resp.StatusCode >= 300 {
		if err := json.Unmarshal(data, &problem); err != nil {
			f.fault("%s: expected a problem in JSON, but got %s: %.200s", id, resp.Status, data)
		}
	}
	f.mu.Lock()
	f.said[resp.StatusCode]++
	f.saidNow[resp.StatusCode]++
	f.mu.Unlock()
	switch resp.StatusCode {
	case http.StatusOK, http.StatusAccepted:
		f.mu.Lock()
		f.answered[id] = true
		f.took, f.tookNow = append(f.took, took), append(f.tookNow, took)
		f.mu.Unlock()
	case http.StatusTooManyRequests:
		seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		if err != nil || seconds < 1 || problem.Code != api.Overloaded || !problem.Retryable {
			f.fault("%s: expected a refusal with the code overloaded and Retry-After of at least 1, but got %q and %s", id, resp.Header.Get("Retry-After"), data)
		}
		f.mu.Lock()
		f.refusal = append(f.refusal, took)
		f.retryAfter[seconds]++
		f.mu.Unlock()
		again = time.Duration(seconds) * time.Second
	case http.StatusGatewayTimeout:
		if problem.Code != api.OutcomeUnknown {
			f.fault("%s: expected the code outcome_unknown, but got %s", id, data)
		}
		f.mu.Lock()
		if !f.answered[id] {
			f.answered[id] = false // it may be on the log
		}
		f.mu.Unlock()
	default:
		f.fault("%s: expected to be accepted or refused, but got %s: %.200s", id, resp.Status, data)
	}
	return resp.StatusCode, again
}

// hammer submits one operation after the other. It takes no notice of Retry-After beyond a moment: a client that spins on refusals
// would only measure how fast this machine refuses.
func (f *flood) hammer(name string) {
	for i := 0; !isClosed(f.stop); i++ {
		if status, _ := f.submit(f.t.Context(), fmt.Sprintf("%s-%d", name, i)); status != http.StatusAccepted {
			<-after(20 * time.Millisecond)
		}
	}
}

// pour submits lines of one batch after the other, as fast as they are taken.
func (f *flood) pour(name string) {
	const lines = 2000
	for n := 0; !isClosed(f.stop); n++ {
		from, to := io.Pipe()
		go func() {
			encoder := json.NewEncoder(to)
			for i := 0; i < lines && !isClosed(f.stop); i++ {
				q := f.work(fmt.Sprintf("%s-%d-%d", name, n, i))
				if encoder.Encode(map[string]any{"id": q.ID, "organization": q.Organization, "type": q.Type, "data": q.Data}) != nil {
					return // the reader has gone, and says why
				}
			}
			to.Close()
		}()
		client := api.Client{Base: f.url, HTTP: f.http}
		_, err := client.Batch(f.t.Context(), from, func(line api.BatchLine) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.batchLines[line.Accepted]++
			if line.Accepted {
				f.answered[line.ID] = true
			}
			return nil
		})
		from.Close()
		var problem *api.Problem
		switch {
		case errors.As(err, &problem) && problem.Code == api.Overloaded:
			if problem.RetryAfter < time.Second {
				f.fault("%s: expected Retry-After of at least a second, but got %s", name, problem.RetryAfter)
			}
			select {
			case <-after(problem.RetryAfter):
			case <-f.stop:
			}
		case err != nil && f.t.Context().Err() == nil:
			f.fault("%s: %v", name, err)
		}
	}
}

// produce puts requests on the log without asking anybody.
func (f *flood) produce() {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	began, asked := time.Now(), 0
	for !isClosed(f.stop) {
		for want := int(time.Since(began).Seconds() * float64(overloadServed*3/4)); asked < want; asked++ {
			f.request(f.work(fmt.Sprintf("kafka-%d", asked)))
		}
		select {
		case <-tick.C:
		case <-f.stop:
		}
	}
	f.requests.Wait()
	f.produced.Store(int64(asked))
}

// look is one line of the table: what an operator sees while it lasts.
type look struct {
	at       time.Duration
	resident int           // MiB
	status   time.Duration // how long GET /v1/status took
	list     time.Duration // how long a list took
	listLag  string        // header
	asOf     bool          // the list says what it shows
	api.Status
}

func (f *flood) look(began time.Time) (look, error) {
	l := look{at: time.Since(began), resident: resident(f.t, f.parts[0].cmd.Process.Pid)}
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Second)
	defer cancel()
	start := time.Now()
	status, err := f.api.Status(ctx)
	if err != nil {
		return l, err
	}
	l.Status, l.status = *status, time.Since(start)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url+"/v1/operations?limit=20", nil)
	if err != nil {
		return l, err
	}
	start = time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return l, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		return l, fmt.Errorf("expected a list, but got %s %w", resp.Status, err)
	}
	l.list, l.listLag, l.asOf = time.Since(start), resp.Header.Get(api.HeaderLag), resp.Header.Get(api.HeaderAsOf) != ""
	return l, nil
}

// resident is how much of a process is in memory now, in MiB.
func resident(t testing.TB, pid int) int {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatalf("expected to read the memory of the process from /proc, which only Linux has: %v", err)
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.Atoi(strings.Fields(text)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n >> 10
		}
	}
	t.Fatalf("expected VmRSS in the status of process %d, but got %s", pid, status)
	return 0
}

// watchFlood looks once a second until the channel is closed, and prints what it sees.
func (f *flood) watchFlood(began time.Time, until <-chan struct{}) (seen []look) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	f.t.Log("    s  MiB  overloaded  lag ms  list: lag ms  took  status took  scheduler, commands | 202  429  504, p50 and max of 202")
	for {
		select {
		case <-until:
			return seen
		case <-tick.C:
		}
		l, err := f.look(began)
		if err != nil {
			f.fault("after %s: expected reads to be answered, but: %v", time.Since(began).Round(time.Second), err)
			continue
		}
		seen = append(seen, l)
		f.mu.Lock()
		took, said := f.tookNow, f.saidNow
		f.tookNow, f.saidNow = nil, map[int]int{}
		f.mu.Unlock()
		f.t.Logf("%5.0f %4d  %10v  %6d  %12s  %4d  %11d  %v %v | %d %d %d, %d %d ms", l.at.Seconds(), l.resident, l.Overloaded, l.LagMs, l.listLag,
			l.list.Milliseconds(), l.status.Milliseconds(), l.Details["scheduler"], l.Details["commands"],
			said[http.StatusAccepted]+said[http.StatusOK], said[http.StatusTooManyRequests], said[http.StatusGatewayTimeout],
			quantile(took, 0.5).Milliseconds(), quantile(took, 1).Milliseconds())
	}
}

// quantile returns the q-th part of durations, 0 of none.
func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[min(int(q*float64(len(d))), len(d)-1)]
}

// TestOverload asks for more than the service can do: from clients that do not wait, and from a producer that asks nobody. What is
// accepted stays bounded in memory, refusals are quick and say when to come again, reads go on and say how old they are, and
// afterwards everything is caught up with and nothing that was accepted is lost.
func TestOverload(t *testing.T) {
	length := overloadTime(t)
	in := devInstallation(t, "--lease", "15s", "--slots", strconv.Itoa(overloadSlots), "--backlog-max", strconv.Itoa(overloadBacklog))
	f := &flood{
		installation: in, stop: make(chan struct{}),
		http:     &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: overloadClients + overloadBatches}},
		answered: map[string]bool{}, said: map[int]int{}, saidNow: map[int]int{}, retryAfter: map[int]int{}, batchLines: map[bool]int{},
	}
	defer f.http.CloseIdleConnections()
	f.request(f.work("first-0")) // before the scheduler knows of a worker it cannot tell what is a backlog
	f.requests.Wait()
	f.settled(30 * time.Second)

	began := time.Now()
	var asking sync.WaitGroup
	asking.Go(f.produce)
	for i := range overloadClients {
		asking.Go(func() { f.hammer(fmt.Sprintf("http-%d", i)) })
	}
	for i := range overloadBatches {
		asking.Go(func() { f.pour(fmt.Sprintf("batch-%d", i)) })
	}
	patient := make(chan error, 1)
	go func() { patient <- f.obey() }()
	deaf := f.deafListener()
	quiet, watched := make(chan struct{}), make(chan []look, 1)
	go func() { watched <- f.watchFlood(began, quiet) }()

	<-after(length)
	close(f.stop)
	asking.Wait()
	stopped := time.Now()
	f.mu.Lock()
	accepted := len(f.answered) + int(f.produced.Load())
	f.mu.Unlock()
	t.Logf("the flood is over after %s: %d asked for over Kafka, %d answered or unknown over HTTP", time.Since(began).Round(time.Second), f.produced.Load(), len(f.answered))
	if err := <-patient; err != nil {
		t.Errorf("a client that comes again when it is told to: %v", err)
	}
	// It may have come again after all else was done, and settled may look before the tables know of it.
	eventually(t, time.Minute, func() (bool, string) {
		r := programRun(t, "", "op", "get", "patient-0", "-O", "org-0", "--server", f.url)
		return strings.Contains(r.out, "succeeded"), r.String()
	})
	// Twice the time in which the workers can do it all, if they had done none, and a minute for a busy machine.
	f.settled(2*time.Duration(accepted/overloadServed)*time.Second + time.Minute)
	t.Logf("caught up %s after the end of the flood", time.Since(stopped).Round(100*time.Millisecond))
	close(quiet)
	seen := <-watched
	deaf()

	f.judgeAnswers(seen)
	f.judgeTables()
	in.judge() // what Kafka's producer was told, the laws of the journal, and verify
}

// obey submits one operation as a client should: refused, it comes again after the time that it was told.
func (f *flood) obey() error {
	<-after(4 * time.Second) // into the overload
	deadline := time.Now().Add(10 * time.Minute)
	for tries := 1; time.Now().Before(deadline); tries++ {
		status, again := f.submit(f.t.Context(), "patient-0")
		switch status {
		case http.StatusOK, http.StatusAccepted:
			f.t.Logf("the client that comes again when it is told to was accepted at try %d", tries)
			return nil
		case http.StatusTooManyRequests, http.StatusGatewayTimeout:
			<-after(again)
		default:
			return fmt.Errorf("expected to be accepted or refused, but got %d", status)
		}
	}
	return errors.New("expected to be accepted within ten minutes, but it was not")
}

// deafListener opens the stream of updates and reads nothing. What is sent to it must not pile up, nor hold anybody up.
func (f *flood) deafListener() (closed func()) {
	req, err := http.NewRequestWithContext(f.t.Context(), http.MethodGet, f.url+"/v1/events", nil)
	if err != nil {
		f.t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: &http.Transport{ReadBufferSize: 4096}}).Do(req) //nolint:bodyclose // what is returned closes it
	if err != nil {
		f.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		f.t.Fatalf("expected the stream of updates, but got %s", resp.Status)
	}
	return func() { resp.Body.Close() }
}

// judgeAnswers says whether the service behaved while it could not keep up.
func (f *flood) judgeAnswers(seen []look) {
	t := f.t
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fault := range f.faults {
		t.Error(fault)
	}
	most, overloaded, stale, worst := 0, 0, 0, time.Duration(0)
	for _, l := range seen {
		most, worst = max(most, l.resident), max(worst, l.list)
		if l.Overloaded {
			overloaded++
		}
		if l.listLag == "" || !l.asOf || l.AsOf == "" {
			stale++
		}
	}
	t.Logf("memory: at most %d MiB resident, bound %d; status said overloaded %d of %d times; slowest list %s", most, overloadMemoryMax, overloaded, len(seen), worst.Round(time.Millisecond))
	t.Logf("answers by status: %v; lines of batches: %v; Retry-After in seconds: %v", f.said, f.batchLines, f.retryAfter)
	t.Logf("accepted answers: p50 %s, p90 %s, p99 %s, max %s; refusals: p50 %s, p99 %s", quantile(f.took, 0.5), quantile(f.took, 0.9), quantile(f.took, 0.99), quantile(f.took, 1),
		quantile(f.refusal, 0.5), quantile(f.refusal, 0.99))
	if most > overloadMemoryMax {
		t.Errorf("expected the process to stay below %d MiB, but it had %d", overloadMemoryMax, most)
	}
	if len(seen) == 0 || stale > 0 {
		t.Errorf("expected all %d looks to say how old what they show is, but %d did not", len(seen), stale)
	}
	if f.said[http.StatusTooManyRequests] == 0 || overloaded == 0 {
		t.Errorf("expected refusals with 429 and a status that says overloaded, but got %v, and overloaded %d times", f.said, overloaded)
	}
	if len(f.took) == 0 {
		t.Error("expected some submissions to be accepted, but none was")
	}
	// What comes before it is known how fast the service is, and who goes first to see, waits for longer than the 2 s after which others
	// are refused, and on a busy machine for much longer; but they are few.
	late, answers := f.said[http.StatusGatewayTimeout], 0
	for _, n := range f.said {
		answers += n
	}
	for _, took := range f.took {
		if took > 4*time.Second {
			late++
		}
	}
	if 20*late > answers {
		t.Errorf("expected nearly all of %d answers within about 2 s, but %d took twice as long, or the 10 s after which they are given up", answers, late)
	}
	if p50 := quantile(f.refusal, 0.5); p50 > time.Second {
		t.Errorf("expected refusals at once, but half of them took longer than %s", p50)
	}
}

// judgeTables says whether what was accepted over HTTP is in the journal, once, and has ended; and whether the tables count as
// many as the journal.
func (f *flood) judgeTables() {
	t := f.t
	all := map[string]operation.Status{}
	journal := projector.Journal{Client: f.client()}
	ends, err := journal.Ends(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for p, end := range ends {
		_, err := journal.Read(t.Context(), p, end, func(e projections.Entry) error {
			switch ev := &e.Event; ev.Kind {
			case operation.Requested:
				if _, twice := all[string(ev.ID)]; twice {
					t.Errorf("%s: requested twice", ev.ID)
				}
				all[string(ev.ID)] = operation.StatusReady
			case operation.Succeeded:
				all[string(ev.ID)] = operation.StatusSucceeded
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	lost := 0
	for id, accepted := range f.answered {
		if status, known := all[id]; accepted && (!known || status != operation.StatusSucceeded) || known && status != operation.StatusSucceeded {
			if lost++; lost <= 10 {
				t.Errorf("%s: expected it to have succeeded, since it was accepted (%v), but it is %v (known %v)", id, accepted, status, known)
			}
		}
	}
	counts, err := f.api.Counts(t.Context(), "", api.Call{})
	if err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	for _, c := range counts.ByStatus {
		total += c.Count
	}
	if total != int64(len(all)) {
		t.Errorf("expected %d operations in the tables, as in the journal, but got %+v", len(all), counts.ByStatus)
	}
	unknown := slices.Collect(maps.Values(f.answered))
	unknown = slices.DeleteFunc(unknown, func(accepted bool) bool { return accepted })
	t.Logf("%d operations in the journal, %d over Kafka, %d accepted over HTTP, %d of unknown outcome; %d lost", len(all), f.produced.Load(), len(f.answered)-len(unknown), len(unknown), lost)
}

// TestFullPartitionsRefuse fills a partition with operations that nobody serves. What is too much is refused with a code that says to
// come back, over HTTP and in the journal, and is taken, under the same id, when there is room.
func TestFullPartitionsRefuse(t *testing.T) {
	t.Parallel()
	const room = 5
	in := devInstallation(t, "--partitions", "1", "--live-max", strconv.Itoa(room))
	submit := func(id string) (*api.Outcome, *api.Problem) {
		t.Helper()
		out, err := in.api.Submit(t.Context(), fmt.Appendf(nil, `{"id":%q,"organization":"o","type":"served-by-nobody"}`, id), api.Call{})
		var problem *api.Problem
		if err != nil && !errors.As(err, &problem) {
			t.Fatal(err)
		}
		return out, problem
	}
	for i := range room {
		if _, problem := submit(fmt.Sprint("op-", i)); problem != nil {
			t.Fatalf("expected operation %d of %d to be accepted, but: %v", i, room, problem)
		}
	}
	_, problem := submit("late")
	if problem == nil || problem.Status != http.StatusTooManyRequests || problem.Code != api.Overloaded || problem.RetryAfter < time.Second || problem.Position == "" {
		t.Errorf("expected one too many to be refused with 429, overloaded, when to come again, and its place in the journal, but got %+v", problem)
	}
	in.request(&producers.Request{ID: "late-2", Organization: "o", Type: "served-by-nobody"})
	in.requests.Wait()
	if _, err := in.api.Command(t.Context(), "cancel", "o", "op-0", api.CommandBody{By: "test", Reason: "room"}, nil, api.Call{}); err != nil {
		t.Fatal(err)
	}
	if _, problem := submit("late"); problem != nil {
		t.Errorf("expected it to be accepted when there is room, but: %v", problem)
	}
	refused := map[operation.ID]int{}
	journal := projector.Journal{Client: in.client()}
	ends, err := journal.Ends(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := journal.Read(t.Context(), 0, ends[0], func(e projections.Entry) error {
		if e.Event.Kind == operation.Rejected && e.Event.Code == operation.Overloaded {
			refused[e.Event.ID]++
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if refused["late"] != 1 || refused["late-2"] != 1 || len(refused) != 2 {
		t.Errorf("expected the journal to tell of both refusals, but it has %v", refused)
	}
}

// TestWorkGoesOnWhileTheTablesAreAway holds the tables' write lock. Operations are accepted and run all the same, reads are answered and
// say that they are old, and when the lock is gone the tables catch up.
func TestWorkGoesOnWhileTheTablesAreAway(t *testing.T) {
	t.Parallel()
	in := devInstallation(t)
	ended := in.ends(t.Context())
	ask := func(id string) {
		t.Helper()
		if _, err := in.api.Submit(t.Context(), fmt.Appendf(nil, `{"id":%q,"organization":"o","type":"noop"}`, id), api.Call{}); err != nil {
			t.Fatalf("expected %s to be accepted, but: %v", id, err)
		}
	}
	ask("before")
	<-ended
	in.counted(1)

	db, err := sql.Open("sqlite", "file:"+in.tables)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	holder, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	for _, statement := range []string{"PRAGMA busy_timeout=10000", "BEGIN IMMEDIATE"} {
		if _, err := holder.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	const n = 500
	for i := range n {
		ask(fmt.Sprint("during-", i))
	}
	for range n {
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Fatal("expected operations to run while the tables cannot be written, but one did not within a minute")
		}
	}
	eventually(t, 30*time.Second, func() (bool, string) {
		status, err := in.api.Status(t.Context())
		if err != nil {
			return false, err.Error()
		}
		return status.LagMs > 1000 && !status.Ready && status.Reason != "" && !status.Overloaded, fmt.Sprintf("%+v", status)
	})
	l, err := (&flood{installation: in}).look(time.Now())
	if lag, _ := strconv.Atoi(l.listLag); err != nil || lag < 1000 || !l.asOf {
		t.Errorf("expected the list to be answered and to say that it is old, but got %q, %v", l.listLag, err)
	}
	in.counted(1)
	if _, err := holder.ExecContext(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	in.counted(n + 1)
	eventually(t, 30*time.Second, func() (bool, string) {
		status, err := in.api.Status(t.Context())
		if err != nil {
			return false, err.Error()
		}
		return status.LagMs == 0 && status.Ready, fmt.Sprintf("%+v", status)
	})
}

// counted waits until the tables have so many operations, which have all succeeded.
func (in *installation) counted(n int64) {
	in.t.Helper()
	eventually(in.t, time.Minute, func() (bool, string) {
		counts, err := in.api.Counts(in.t.Context(), "", api.Call{})
		if err != nil {
			return false, err.Error()
		}
		total, succeeded := int64(0), int64(0)
		for _, c := range counts.ByStatus {
			total += c.Count
			if c.Status == operation.StatusSucceeded.String() {
				succeeded = c.Count
			}
		}
		return total == n && succeeded == n, fmt.Sprintf("%d operations, %d of them succeeded, expected %d", total, succeeded, n)
	})
}
