package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/schemas"
)

// outageTime is how long each outage lasts.
func outageTime(t testing.TB) time.Duration {
	const seconds = 8
	text := os.Getenv("OPSTREAM_OUTAGE_SECONDS")
	n, err := strconv.Atoi(cmp.Or(text, strconv.Itoa(seconds)))
	if err != nil || n < 1 {
		t.Fatalf("expected OPSTREAM_OUTAGE_SECONDS to be a number of seconds, but it is %q", text)
	}
	return time.Duration(n) * time.Second
}

// beat is one operation of the pulse's.
type beat struct{ asked, accepted, done time.Time }

// pulse asks for short operations steadily, each in a chain of its own, and notes when each was acknowledged and when its end could be
// read in the journal: what an outside caller has of the service, without the tables.
type pulse struct {
	in   *installation
	stop func()

	mu  sync.Mutex
	ops map[string]*beat
}

// pulseEvery is the time between two of the pulse's operations.
const pulseEvery = 20 * time.Millisecond

// reader is a client that reads the journal from its present ends on. They are known when it is returned: one that looks for the end by
// itself may find it behind what was asked for meanwhile.
func (in *installation) reader() *kgo.Client {
	in.t.Helper()
	ends, err := in.journal().Ends(in.t.Context())
	if err != nil {
		in.t.Fatal(err)
	}
	from := make(map[int32]kgo.Offset, len(ends))
	for p, end := range ends {
		from[p] = kgo.NewOffset().At(end)
	}
	client, err := kgo.NewClient(append(in.client(), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{in.topics.Journal(): from}))...)
	if err != nil {
		in.t.Fatal(err)
	}
	return client
}

func (in *installation) pulse() *pulse {
	in.t.Helper()
	m := &pulse{in: in, ops: map[string]*beat{}}
	client := in.reader()
	ctx, cancel := context.WithCancel(in.t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		defer client.Close()
		for ctx.Err() == nil {
			client.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
				if e, err := schemas.DecodeEvent(r); err == nil && e.Kind == operation.Succeeded {
					m.note(string(e.ID), func(o *beat) *time.Time { return &o.done })
				}
			})
		}
	})
	all.Go(func() {
		tick := time.NewTicker(pulseEvery)
		defer tick.Stop()
		for i := 0; ctx.Err() == nil; i++ {
			m.ask(fmt.Sprintf("pulse-%d", i))
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	m.stop = sync.OnceFunc(func() {
		cancel()
		all.Wait()
	})
	in.t.Cleanup(m.stop)
	// The first one that ends shows that the reader reads and all else works.
	eventually(in.t, time.Minute, func() (bool, string) { return m.first(time.Time{}) != nil, "no operation of the pulse has ended" })
	return m
}

func (m *pulse) ask(id string) {
	o := &beat{asked: time.Now()}
	m.mu.Lock()
	m.ops[id] = o
	m.mu.Unlock()
	m.in.ask(&producers.Request{ID: id, Organization: "pulse", Type: "noop"}, func() {
		m.note(id, func(o *beat) *time.Time { return &o.accepted })
	})
}

func (m *pulse) note(id string, which func(*beat) *time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o := m.ops[id]; o != nil {
		if at := which(o); at.IsZero() {
			*at = time.Now()
		}
	}
}

// first is the first to end among those that were asked for at this time or later.
func (m *pulse) first(asked time.Time) *beat {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found *beat
	for _, o := range m.ops {
		if !o.asked.Before(asked) && !o.done.IsZero() && (found == nil || o.done.Before(found.done)) {
			found = o
		}
	}
	return found
}

// next waits until an operation has ended that was asked for after this moment, and returns how long after it that was.
func (m *pulse) next(since time.Time) time.Duration {
	m.in.t.Helper()
	var o *beat
	eventually(m.in.t, 90*time.Second, func() (bool, string) {
		o = m.first(since)
		return o != nil, "no operation has ended that was asked for " + time.Since(since).String() + " ago or later"
	})
	return o.done.Sub(since)
}

// flows waits until every operation has ended that was asked for before this moment, in whatever partition, and returns how long after
// it that was.
func (m *pulse) flows(before time.Time) time.Duration {
	m.in.t.Helper()
	var last time.Time
	eventually(m.in.t, 90*time.Second, func() (bool, string) {
		m.mu.Lock()
		defer m.mu.Unlock()
		open := 0
		for _, o := range m.ops {
			switch {
			case !o.asked.Before(before):
			case o.done.IsZero():
				open++
			case o.done.After(last):
				last = o.done
			}
		}
		return open == 0, fmt.Sprintf("%d operations have not ended that were asked for before", open)
	})
	return max(0, last.Sub(before))
}

// stretch is what the pulse saw of the operations that were asked for between two moments.
type stretch struct {
	length                time.Duration
	asked, accepted, done int // done within the stretch, whenever asked
	accept, end           []time.Duration
}

func (m *pulse) between(from, to time.Time) stretch {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := stretch{length: to.Sub(from)}
	inside := func(at time.Time) bool { return !at.Before(from) && at.Before(to) }
	for _, o := range m.ops {
		if inside(o.asked) {
			s.asked++
			if !o.accepted.IsZero() {
				s.accept = append(s.accept, o.accepted.Sub(o.asked))
			}
			if !o.done.IsZero() {
				s.end = append(s.end, o.done.Sub(o.asked))
			}
		}
		if inside(o.accepted) {
			s.accepted++
		}
		if inside(o.done) {
			s.done++
		}
	}
	slices.Sort(s.accept)
	slices.Sort(s.end)
	return s
}

func (s stretch) String() string {
	rate := func(n int) float64 { return float64(n) / s.length.Seconds() }
	return fmt.Sprintf("accepted %5.1f/s in %s, done %5.1f/s in %s", rate(s.accepted), quantiles(s.accept), rate(s.done), quantiles(s.end))
}

// quantiles shows the median, the 99th percentile and the longest of sorted durations.
func quantiles(d []time.Duration) string {
	if len(d) == 0 {
		return "-"
	}
	at := func(q float64) time.Duration { return d[int(q*float64(len(d)-1))].Round(100 * time.Microsecond) }
	return fmt.Sprintf("%s/%s/%s", at(0.5), at(0.99), at(1))
}

// row logs one row of the table of what outages do; latencies are median/99th percentile/longest.
func row(t testing.TB, outage, format string, args ...any) {
	t.Helper()
	t.Logf("| %-26s | %s", outage, fmt.Sprintf(format, args...))
}

// level waits until the tables have all that the journal has at this moment, and returns how long after since that was.
func (in *installation) level(since time.Time) time.Duration {
	in.t.Helper()
	ends, err := in.journal().Ends(in.t.Context())
	if err != nil {
		in.t.Fatal(err)
	}
	var all api.Positions
	for p, end := range ends {
		if end > 0 {
			all = append(all, api.Position{Partition: p, Place: operation.Place(end - 1)})
		}
	}
	eventually(in.t, 2*time.Minute, func() (bool, string) {
		ctx, cancel := context.WithTimeout(in.t.Context(), 15*time.Second)
		defer cancel()
		_, err := in.api.Counts(ctx, "", api.Call{After: all.String(), Wait: 10 * time.Second})
		return err == nil, fmt.Sprintf("the tables do not have %s: %v", all, err)
	})
	return time.Since(since)
}

// outageRate is the load of an outage, in operations per second: what two cores carry with all processes, Kafka's and the database's,
// and some to spare, so that what is measured is the outage.
const outageRate = 100

// outage is underLoad with the pulse, once everything works.
func (in *installation) outage(do func(*pulse)) {
	in.t.Helper()
	in.rate = cmp.Or(in.rate, outageRate)
	in.underLoad(func(uint64) {
		in.probe("before")
		m := in.pulse()
		defer m.stop()
		m.flows(time.Now()) // the processes are warm
		began := time.Now()
		<-after(outageTime(in.t) / 2)
		row(in.t, "before", "%s", m.between(began, time.Now()))
		do(m)
	})
}

// reader asks the API for something in the tables, again and again, and counts the answers by their kind.
type reader struct {
	mu    sync.Mutex
	kinds map[string]int
	took  []time.Duration
	last  string // the last answer that was no success
	stop  func()
}

func (in *installation) reads() *reader {
	r := &reader{kinds: map[string]int{}}
	ctx, cancel := context.WithCancel(in.t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		for ctx.Err() == nil {
			asking, done := context.WithTimeout(ctx, 20*time.Second)
			began := time.Now()
			_, err := in.api.Counts(asking, "", api.Call{})
			done()
			if ctx.Err() != nil {
				return
			}
			r.note(time.Since(began), err)
			<-after(100 * time.Millisecond)
		}
	})
	r.stop = sync.OnceFunc(func() {
		cancel()
		all.Wait()
	})
	in.t.Cleanup(r.stop)
	return r
}

func (r *reader) note(took time.Duration, err error) {
	kind := "200"
	problem, answered := errors.AsType[*api.Problem](err)
	switch {
	case answered:
		kind = fmt.Sprintf("%d %s", problem.Status, problem.Code)
	case errors.Is(err, context.DeadlineExceeded):
		kind = "no answer in 20 s"
	case err != nil:
		kind = "no connection"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kinds[kind]++
	r.took = append(r.took, took)
	if err != nil {
		r.last = err.Error()
	}
}

// expect says whether all answers were successes, or problems with this status that a caller may try again.
func (r *reader) expect(t testing.TB) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for kind, n := range r.kinds {
		if kind != "200" && !strings.HasPrefix(kind, strconv.Itoa(http.StatusServiceUnavailable)) {
			t.Errorf("expected reads to be answered, or to hear %d, but %d times it was: %s; the last fault: %s", http.StatusServiceUnavailable, n, kind, r.last)
		}
	}
}

func (r *reader) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.Sort(r.took)
	return fmt.Sprintf("reads %v in %s", r.kinds, quantiles(r.took))
}

// count is how many answers were of kinds that begin like this.
func (r *reader) count(kind string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for k, times := range r.kinds {
		if strings.HasPrefix(k, kind) {
			n += times
		}
	}
	return n
}
