package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/schemas"
)

// envOldBinary names an opstream of another commit, which the test of rolling changes then takes for the old version.
const envOldBinary = "OPSTREAM_OLD_BINARY"

// twoVersions are two programs: what runs, and what is to take its place.
func twoVersions(t *testing.T) (older, newer string) {
	t.Helper()
	build := func(name string, args ...string) string {
		path := filepath.Join(t.TempDir(), name)
		args = append([]string{"build", "-o", path, "-ldflags", "-X main.version=" + name}, args...)
		if out, err := exec.CommandContext(t.Context(), "go", append(args, ".")...).CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
		return path
	}
	if older = os.Getenv(envOldBinary); older != "" {
		if out, err := exec.CommandContext(t.Context(), older, "version").CombinedOutput(); err != nil {
			t.Fatalf("expected %s to name an opstream, but %s is none: %v\n%s", envOldBinary, older, err, out)
		}
		t.Logf("old version: %s (%s)", older, envOldBinary)
		return older, build("newer")
	}
	older, err := program()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("STAND-IN: both versions are of this tree; the newer one adds to every message what the older one does not know. Set %s to a program of another commit for a true change", envOldBinary)
	return older, build("newer", "-tags", "later")
}

const (
	rollingSchedulers = 3
	rollingWorkers    = 3
	rollingPartitions = schemas.DefaultPartitions
	// The time between two requests of a partition, and so what a silence of it can be told from. A Kafka that has just begun shares the
	// processors with nine processes, and must not be what the operations wait for.
	rollingEvery      = 40 * time.Millisecond
	rollingEveryKafka = 120 * time.Millisecond
)

// Bounds of silences. They only tell a hand-over from a lost lease or session on a machine that has other things to do;
// the figures are in the test's log.
const (
	stayingLimit = 5 * time.Second
	movingLimit  = 10 * time.Second
)

// rollingParts are the processes whose versions change, and one that writes the tables and has the API, which does not.
func (in *installation) rollingParts(older string, first []string, args ...string) []*daemon {
	role := func(name, roles string, more ...string) *daemon {
		d := daemonOf(in.t, name, slices.Concat([]string{"serve", "--roles", roles, "--brokers", in.broker, "--log", "warn"}, args, more)...)
		d.path = older
		return d
	}
	var parts []*daemon
	for i := range rollingSchedulers {
		parts = append(parts, role(fmt.Sprint("scheduler-", i+1), "scheduler"))
	}
	parts[0].args = append(parts[0].args, first...)
	for i := range rollingWorkers {
		parts = append(parts, role(fmt.Sprint("worker-", i+1), "worker", "--webhook-private", "--slots", "32"))
	}
	return append(parts, role("api", "projector,api", "--database", in.tables, "--listen", strings.TrimPrefix(in.url, "http://")))
}

func TestRollingChange(t *testing.T) {
	older, newer := twoVersions(t)
	dir := t.TempDir()
	in := newInstallation(t, dir)
	broker := daemonOf(t, "broker", "serve", "--roles", "broker", "--data", dir, "--kafka", in.broker, "--partitions", strconv.Itoa(rollingPartitions), "--log", "warn")
	broker.path = older
	in.parts = append([]*daemon{broker}, in.rollingParts(older, nil)...)
	in.start().rolling(older, newer, rollingEvery)
}

func TestKafkaRollingChange(t *testing.T) {
	b := kafkatest.OnReal(t, kafkatest.Real(t))
	older, newer := twoVersions(t)
	in := newInstallation(t, t.TempDir())
	in.broker, in.topics = strings.Join(b.Seeds, ","), b.Topics()
	in.parts = in.rollingParts(older, []string{"--create-topics"}, "--topic-prefix", b.Prefix)
	in.start().rolling(older, newer, rollingEveryKafka)
}

// recordedHooks is a receiver of webhooks that records what it is called for.
func recordedHooks(t *testing.T) (*watcher, string) {
	w := &watcher{}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseUint(r.Header.Get("Opstream-Attempt"), 10, 32)
		if err != nil {
			t.Errorf("expected a call to name its attempt, but: %v", err)
		}
		run := &attempted{id: r.Header.Get("Ce-Id"), attempt: operation.Attempt(n), from: time.Now()}
		w.mu.Lock()
		w.runs = append(w.runs, run)
		again := len(w.runs)%20 == 0 && run.attempt == 1
		w.mu.Unlock()
		<-after(time.Duration(1+len(run.id)%5) * time.Millisecond) // the work
		w.mu.Lock()
		run.to, run.failed = time.Now(), again
		w.mu.Unlock()
		if again {
			rw.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(server.Close)
	return w, server.URL
}

// seenEnd is an operation's way as the test has seen it.
type seenEnd struct {
	partition int32
	asked     time.Time
	ended     time.Time
}

// takeover is a partition.opened.
type takeover struct {
	partition int32
	owner     string
	at        time.Time
}

// spectator reads the journal while it is written.
type spectator struct {
	mu     sync.Mutex
	ways   map[string]*seenEnd
	ends   map[int32][]time.Time // by partition
	opened []takeover
	news   chan struct{}
}

// spectate begins at the journal's start.
func (in *installation) spectate(ctx context.Context) *spectator {
	s := &spectator{ways: map[string]*seenEnd{}, ends: map[int32][]time.Time{}, news: make(chan struct{}, 1)}
	client, err := kgo.NewClient(append(in.client(), kgo.ConsumeTopics(in.topics.Journal()), kgo.FetchMaxWait(100*time.Millisecond))...)
	if err != nil {
		in.t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		for ctx.Err() == nil {
			fetches := client.PollFetches(ctx)
			now := time.Now()
			s.mu.Lock()
			fetches.EachRecord(func(r *kgo.Record) {
				e, err := schemas.DecodeEvent(r)
				switch {
				case err != nil:
					in.t.Errorf("%v", err)
				case e.Kind == operation.Opened:
					s.opened = append(s.opened, takeover{r.Partition, e.Owner, now})
				case e.Kind == operation.Succeeded:
					if way := s.ways[string(e.ID)]; way != nil && way.ended.IsZero() {
						way.ended = now
						s.ends[r.Partition] = append(s.ends[r.Partition], now)
					}
				}
			})
			s.mu.Unlock()
			select {
			case s.news <- struct{}{}:
			default:
			}
		}
	})
	in.t.Cleanup(func() {
		client.Close()
		reading.Wait()
	})
	return s
}

// until waits until what the spectator has seen is enough.
func (s *spectator) until(t *testing.T, what string, enough func() bool) {
	t.Helper()
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	for {
		s.mu.Lock()
		ok := enough()
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-s.news:
		case <-limit.C:
			t.Fatalf("expected %s within a minute, but it did not come", what)
		}
	}
}

// owners of all partitions, as far as they are opened. The caller holds mu.
func (s *spectator) owners() map[int32]string {
	owners := map[int32]string{}
	for _, o := range s.opened {
		owners[o.partition] = o.owner
	}
	return owners
}

// owns says whether the process is the owner of that name, see ownerName.
func (d *daemon) owns(owner string) bool {
	return strings.Contains(owner, fmt.Sprintf("/%d/", d.cmd.Process.Pid))
}

// steadyLoad asks for operations in every partition in turns: calls of hooks and others, of which every third has a token, and every fifth goes
// through the API. It returns when stop is closed and all is settled.
func (in *installation) steadyLoad(s *spectator, hooks string, every time.Duration, stop <-chan struct{}) {
	names := map[int32][]string{} // partition keys by partition
	for i := 0; len(names) < rollingPartitions || slices.ContainsFunc(sorted(names), func(of []string) bool { return len(of) < 3 }); i++ {
		name := fmt.Sprint("name-", i)
		p := schemas.PartitionFor([]byte(operation.Key("o", name, "", "")), rollingPartitions)
		names[p] = append(names[p], name)
	}
	retry := &producers.RetryPolicy{MaxAttempts: 1000, Initial: 20 * time.Millisecond, Max: time.Second, Multiplier: 2}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := 0; !isClosed(stop); i++ {
		for p := range int32(rollingPartitions) {
			q := &producers.Request{ID: fmt.Sprintf("op-%d-%d", p, i), Organization: "o", Type: "noop", Retry: retry}
			n := i + int(p)
			if n%2 == 0 {
				q.Type, q.Data = "webhook", map[string]any{"url": hooks}
			}
			if name := names[p][n%3]; n%3 == 0 {
				q.DependencyToken = name
			} else {
				q.PartitionKey = name
			}
			s.mu.Lock()
			s.ways[q.ID] = &seenEnd{partition: p, asked: time.Now()}
			s.mu.Unlock()
			if n%5 == 0 {
				in.submit(q)
			} else {
				in.request(q)
			}
		}
		select {
		case <-tick.C:
		case <-stop:
		}
	}
	in.requests.Wait()
}

func sorted(names map[int32][]string) (all [][]string) {
	for _, of := range names {
		all = append(all, of)
	}
	return all
}

// submit asks the API for an operation, again while it is told to come again, and keeps the answer: the event that it points at must
// count for ever.
func (in *installation) submit(q *producers.Request) {
	body := map[string]any{"organization": q.Organization, "id": q.ID, "type": q.Type, "retry": map[string]any{"maxAttempts": 1000, "initial": "20ms"}}
	if q.Data != nil {
		body["data"] = q.Data
	}
	if q.DependencyToken != "" {
		body["dependencyToken"] = q.DependencyToken
	} else {
		body["partitionKey"] = q.PartitionKey
	}
	text, err := json.Marshal(body)
	if err != nil {
		in.t.Error(err)
		return
	}
	in.requests.Go(func() {
		for deadline := time.Now().Add(time.Minute); ; {
			out, err := in.api.Submit(in.t.Context(), text, api.Call{})
			var problem *api.Problem
			if errors.As(err, &problem) && (problem.Status == http.StatusTooManyRequests || problem.Status >= 500) && time.Now().Before(deadline) {
				<-after(50 * time.Millisecond) // it said to come again
				continue
			}
			in.mu.Lock()
			defer in.mu.Unlock()
			if err != nil {
				in.refused = append(in.refused, fmt.Errorf("%s: %w", q.ID, err))
				return
			}
			in.accepted[q.ID] = q
			at, err := api.ParsePosition(out.Position)
			if err != nil {
				in.t.Errorf("%s: expected a position in the answer, but: %v", q.ID, err)
				return
			}
			in.answers = append(in.answers, answered{q.ID, at})
			return
		}
	})
}

// step is the restart of one process.
type step struct {
	name           string
	began          time.Time
	exited         time.Time
	left, returned time.Time // when the partitions that it had were opened elsewhere, and when it had some again
	had            []int32
	ended          time.Time
}

// exchange stops a process and starts the other version in its place, and returns when its share of the work is with it again.
func (in *installation) exchange(s *spectator, d *daemon, path string) step {
	t := in.t.(*testing.T)
	t.Helper()
	st := step{name: d.name, began: time.Now()}
	s.mu.Lock()
	for p, owner := range s.owners() {
		if d.owns(owner) {
			st.had = append(st.had, p)
		}
	}
	leaving := d.cmd.Process.Pid
	s.mu.Unlock()
	slices.Sort(st.had)
	d.signal(syscall.SIGTERM)
	code, _ := d.exits(stopLimit)
	if code != exitOK {
		t.Errorf("expected %s to stop cleanly, but it exited with %d\n%s", d.name, code, d.log)
	}
	st.exited = time.Now()
	schedules := strings.HasPrefix(d.name, "scheduler")
	if schedules {
		s.until(t, "others to open what "+d.name+" had", func() bool {
			for _, owner := range s.owners() {
				if strings.Contains(owner, fmt.Sprintf("/%d/", leaving)) {
					return false
				}
			}
			return true
		})
		st.left = time.Now()
	}
	d.path = path
	d.launch()
	d.up()
	if schedules {
		s.until(t, d.name+" to open its share", func() bool {
			n := 0
			for _, owner := range s.owners() {
				if d.owns(owner) {
					n++
				}
			}
			return n >= rollingPartitions/rollingSchedulers
		})
		st.returned = time.Now()
	}
	// Everything must go on for a while before the next.
	s.mu.Lock()
	seen := map[int32]int{}
	for p, ends := range s.ends {
		seen[p] = len(ends)
	}
	s.mu.Unlock()
	s.until(t, "operations to end in every partition", func() bool {
		for p := range int32(rollingPartitions) {
			if len(s.ends[p]) < seen[p]+10 {
				return false
			}
		}
		return true
	})
	st.ended = time.Now()
	return st
}

// rolling changes the version of every scheduler and every worker, one after the other, and back, under load, and judges.
func (in *installation) rolling(older, newer string, every time.Duration) {
	t := in.t.(*testing.T)
	t.Helper()
	s := in.spectate(t.Context())
	s.until(t, "every scheduler to have its share", func() bool {
		shares := map[string]int{}
		for _, owner := range s.owners() {
			shares[owner]++
		}
		for _, n := range shares {
			if n != rollingPartitions/rollingSchedulers {
				return false
			}
		}
		return len(shares) == rollingSchedulers
	})
	hooks, url := recordedHooks(t)
	in.watcher = hooks
	stop, loaded := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(loaded)
		in.steadyLoad(s, url, every, stop)
	}()
	stopLoading := sync.OnceFunc(func() {
		close(stop)
		<-loaded
	})
	defer stopLoading() // also when something gives up
	s.until(t, "operations to end in every partition", func() bool {
		for p := range int32(rollingPartitions) {
			if len(s.ends[p]) < 25 {
				return false
			}
		}
		return true
	})
	var steps []step
	for _, path := range []string{newer, older} {
		for i := range max(rollingSchedulers, rollingWorkers) {
			for _, name := range []string{fmt.Sprint("scheduler-", i+1), fmt.Sprint("worker-", i+1)} {
				steps = append(steps, in.exchange(s, in.part(name), path))
			}
		}
	}
	last := time.Now()
	stopLoading()
	in.settled(60 * time.Second)
	s.until(t, "the end of every operation", func() bool {
		for _, way := range s.ways {
			if way.ended.IsZero() {
				return false
			}
		}
		return true
	})
	in.judge()
	returned, lost, longest := in.handedOver()
	t.Logf("%d attempts were given back, the longest waited %s for the next; %d went to a session that had left", returned, longest, lost)
	if longest > 5*time.Second {
		t.Errorf("expected attempts that were given back to run elsewhere at once, but one waited for %s", longest)
	}
	s.report(t, steps, last)
	for i := len(in.parts) - 1; i >= 0; i-- {
		d := in.parts[i]
		d.signal(syscall.SIGTERM)
		if code, _ := d.exits(30 * time.Second); code != exitOK {
			t.Errorf("expected %s to stop cleanly, but it exited with %d\n%s", d.name, code, d.log)
		}
	}
}

// silence is the longest time without an end in a partition that touches the span.
func (s *spectator) silence(p int32, from, to time.Time) (longest time.Duration) {
	ends := s.ends[p]
	for i := 1; i < len(ends); i++ {
		if ends[i].After(from) && ends[i-1].Before(to) {
			longest = max(longest, ends[i].Sub(ends[i-1]))
		}
	}
	return longest
}

// report tells what the changes have cost, and judges it.
func (s *spectator) report(t *testing.T, steps []step, last time.Time) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	ms := func(d time.Duration) string { return fmt.Sprintf("%d", d.Milliseconds()) }
	needless := 0
	for _, st := range steps {
		moved := map[int32]bool{}
		for _, o := range s.opened {
			if o.at.Before(st.began) || !o.at.Before(st.ended) {
				continue
			}
			moved[o.partition] = true
			if !st.left.IsZero() && o.at.Before(st.left) && !slices.Contains(st.had, o.partition) || st.left.IsZero() {
				needless++
			}
		}
		var stayed, gone time.Duration
		for p := range int32(rollingPartitions) {
			gap := s.silence(p, st.began, st.ended)
			if moved[p] {
				gone = max(gone, gap)
				if gap > movingLimit {
					t.Errorf("%s: partition %d moved and stood still for %s", st.name, p, gap)
				}
				continue
			}
			stayed = max(stayed, gap)
			if gap > stayingLimit {
				t.Errorf("%s: partition %d stayed with its scheduler and stood still for %s", st.name, p, gap)
			}
		}
		line := fmt.Sprintf("%s: stopped in %s ms", st.name, ms(st.exited.Sub(st.began)))
		if !st.left.IsZero() {
			line += fmt.Sprintf(", its partitions %v were elsewhere after %s, it had its share %s later", st.had, ms(st.left.Sub(st.began)), ms(st.returned.Sub(st.left)))
		}
		t.Logf("%s; longest silence of the %d partitions that stayed %s ms, of the %d that moved %s", line, rollingPartitions-len(moved), ms(stayed), len(moved), ms(gone))
	}
	if most := len(steps); needless > most {
		t.Errorf("expected only partitions to move that have to, but %d others did in %d restarts", needless, len(steps))
	}
	worst := map[int32]time.Duration{}
	var all []int64
	for _, way := range s.ways {
		took := way.ended.Sub(way.asked)
		worst[way.partition] = max(worst[way.partition], took)
		all = append(all, int64(took))
	}
	var text []string
	for p := range int32(rollingPartitions) {
		text = append(text, fmt.Sprintf("%d: %s/%s", p, ms(worst[p]), ms(s.silence(p, steps[0].began, last))))
	}
	q := percentilesOf(all)
	t.Logf("%d operations, requested to done p50 %.1f, p90 %.1f, p99 %.1f, worst %.1f ms; %d needless moves", len(all), q.P50, q.P90, q.P99, q.Max, needless)
	t.Logf("by partition, worst delay / longest silence, ms: %s", strings.Join(text, ", "))
}
