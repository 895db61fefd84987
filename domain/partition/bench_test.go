//go:build unix

package partition_test

import (
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/partition"
)

// bench is an engine with what it needs around it to run operations from submission to success.
type bench struct {
	e      *partition.Engine
	outbox *partition.Outbox
	now    operation.Time
	in     [2]int64
	next   int
	open   []operation.Command // reports to come
	done   int
	raw    []byte
	orgs   []string
	types  []string
	tokens []string
}

func newBench(waiting int) *bench {
	b := &bench{now: t0, raw: make([]byte, 256), outbox: partition.NewOutbox()}
	for i := range 400 {
		b.orgs = append(b.orgs, fmt.Sprintf("organization-%03d", i))
	}
	for i := range 14 {
		b.types = append(b.types, fmt.Sprintf("type-%02d", i))
	}
	for i := range 50 {
		b.tokens = append(b.tokens, fmt.Sprintf("token-%02d", i))
	}
	b.e = partition.New(partition.Config{Partitions: 1})
	for i := range waiting {
		b.submit(b.types[i%14], "", t0+operation.Time(1e12)+operation.Time(i%1000)*1e6)
		if i%100 == 99 {
			b.step()
		}
	}
	b.step()
	b.e.Checkpoint(true)
	for i := range 4 {
		b.e.Hear(&partition.Heartbeat{Session: operation.SessionID(fmt.Sprintf("session-%d", i)), Types: b.types, Room: 64, Lease: 24 * time.Hour}, b.now)
	}
	return b
}

func (b *bench) submit(kind, token string, postpone operation.Time) {
	id := operation.ID(fmt.Sprintf("0198c5a2-7f1e-7000-8000-%012d", b.next))
	org := b.orgs[b.next%len(b.orgs)]
	b.next++
	q := &operation.Request{ID: id, Organization: org, Type: kind, DependencyToken: token, Priority: operation.PriorityDefault, PostponeUntil: postpone, Raw: append([]byte(nil), b.raw...)}
	b.e.Do(&operation.Command{Kind: operation.Submit, Org: org, ID: id, Request: q, Cause: operation.Cause{Topic: partition.Requests, Offset: b.in[0]}}, b.now)
	b.in[0]++
}

// step settles, commits, and has the workers succeed with what was dispatched by the next step.
func (b *bench) step() {
	b.now += 100
	b.e.HeardThrough(b.now)
	b.e.Settle(operation.Cause{Topic: partition.Requests, Offset: b.in[0] - 1}, b.now)
	events := b.e.Take()
	place := b.e.End() - operation.Place(len(events))
	for i := range events {
		ev := &events[i]
		b.outbox.Commit(ev, place+operation.Place(i))
		switch ev.Kind {
		case operation.Dispatched:
			b.open = append(b.open, operation.Command{Kind: operation.Succeed, Org: ev.Org, ID: ev.ID, Attempt: ev.Attempt, Session: ev.Session, StartedAt: b.now})
		case operation.Succeeded:
			b.done++
		}
	}
}

func (b *bench) report() {
	for i := range b.open {
		c := &b.open[i]
		c.Cause = operation.Cause{Topic: partition.Reports, Offset: b.in[1]}
		b.in[1]++
		b.e.Do(c, b.now)
	}
	b.open = b.open[:0]
}

// run takes n operations from submission to success, batch at a time.
func (b *bench) run(n, batch int, token func(i int) string) {
	for i := 0; i < n; {
		for range min(batch, n-i) {
			b.submit(b.types[i%14], token(i), 0)
			i++
		}
		b.report()
		b.step()
	}
	for len(b.open) > 0 {
		b.report()
		b.step()
	}
	// Checkpoints are taken every 50 000 events; without them the list of what is gone would grow.
	b.e.Checkpoint(false)
}

// cpu reports the processor time that f takes per operation: other than the time on the clock it does not depend on who
// else uses the machine.
func cpu(b *testing.B, f func()) {
	used := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	b.ReportAllocs()
	b.ResetTimer()
	before := used()
	f()
	b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op")
	b.StopTimer()
}

func free(int) string { return "" }

func (b *bench) chained(i int) string {
	if i%4 == 0 {
		return ""
	}
	return b.tokens[i%len(b.tokens)]
}

// BenchmarkSucceed is one operation from its request to its success: 14 types, 400 organizations, four events.
func BenchmarkSucceed(b *testing.B) {
	for _, batch := range []int{1, 64} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			w := newBench(0)
			cpu(b, func() { w.run(b.N, batch, free) })
			if w.done != b.N {
				b.Fatalf("expected %d to succeed, but %d did", b.N, w.done)
			}
		})
	}
}

// BenchmarkChained is the same with three of four operations in chains.
func BenchmarkChained(b *testing.B) {
	w := newBench(0)
	cpu(b, func() { w.run(b.N, 64, w.chained) })
	if w.done != b.N {
		b.Fatalf("expected %d to succeed, but %d did", b.N, w.done)
	}
}

// BenchmarkWaiting is BenchmarkSucceed while others wait, and what one of those takes in memory: its request (256 bytes of
// which are Raw), state, timer and index entries.
func BenchmarkWaiting(b *testing.B) {
	for _, waiting := range []int{1_000, 1_000_000} {
		b.Run(fmt.Sprint(waiting), func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			w := newBench(waiting)
			runtime.GC()
			runtime.ReadMemStats(&after)
			cpu(b, func() { w.run(b.N, 64, free) })
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(waiting), "bytes/waiting")
			if w.done != b.N {
				b.Fatalf("expected %d to succeed, but %d did", b.N, w.done)
			}
		})
	}
}

// BenchmarkBacklog drains what was ready when the sessions came: one organization's flood in one queue.
func BenchmarkBacklog(b *testing.B) {
	w := newBench(0)
	w.orgs = w.orgs[:1]
	for _, id := range []operation.SessionID{"session-0", "session-1", "session-2", "session-3"} {
		w.e.Hear(&partition.Heartbeat{Session: id, Types: w.types, Room: 64, Lease: 24 * time.Hour, Draining: true}, w.now)
	}
	for i := range b.N {
		w.submit("type-00", "", 0)
		if i%64 == 0 {
			w.step()
		}
	}
	w.step()
	w.e.Hear(&partition.Heartbeat{Session: "session-9", Types: w.types, Room: 64, Lease: 24 * time.Hour}, w.now)
	cpu(b, func() {
		w.step()
		w.run(0, 1, free)
	})
}

// BenchmarkReplay applies the journal of operations that succeeded.
func BenchmarkReplay(b *testing.B) {
	w := newBench(0)
	var journal []operation.Event
	for i := range 10000 {
		w.submit(w.types[i%14], w.chained(i), 0)
		w.report()
		w.now += 100
		w.e.Settle(operation.Cause{Topic: partition.Requests, Offset: w.in[0] - 1}, w.now)
		for _, ev := range w.e.Take() {
			journal = append(journal, ev)
			if ev.Kind == operation.Dispatched {
				w.open = append(w.open, operation.Command{Kind: operation.Succeed, Org: ev.Org, ID: ev.ID, Attempt: ev.Attempt, Session: ev.Session, StartedAt: w.now})
			}
		}
	}
	cpu(b, func() {
		var e *partition.Engine
		for i := range b.N {
			if i%len(journal) == 0 {
				e = partition.New(partition.Config{})
			}
			e.Replay(&journal[i%len(journal)], operation.Place(i%len(journal)))
		}
	})
}

// BenchmarkChain cancels the members of one long chain one after the other.
func BenchmarkChain(b *testing.B) {
	for _, from := range []string{"front", "back", "middle"} {
		b.Run(from, func(b *testing.B) {
			w := newBench(0)
			w.orgs = w.orgs[:1]
			first := w.next
			for range b.N {
				w.submit("type-00", "long", 0)
			}
			w.e.Take()
			cpu(b, func() {
				for i := range b.N {
					switch from {
					case "back":
						i = b.N - 1 - i
					case "middle":
						i = (i + b.N/2) % b.N
					}
					id := operation.ID(fmt.Sprintf("0198c5a2-7f1e-7000-8000-%012d", first+i))
					w.e.Do(&operation.Command{Kind: operation.Cancel, Org: w.orgs[0], ID: id, Cause: operation.Cause{Topic: partition.Requests, Offset: w.in[0]}}, w.now)
					w.in[0]++
					if i%100 == 0 {
						w.e.Take()
					}
				}
			})
			if w.e.Live() != 0 {
				b.Fatalf("expected all to be canceled, but %d are left", w.e.Live())
			}
		})
	}
}
