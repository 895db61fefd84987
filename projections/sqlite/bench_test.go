package sqlite_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/sqlite"
)

// BenchmarkRebuild projects operations that are requested, dispatched, started and succeed, 256 bytes of payload each, into a
// file, and says what one costs. Run it with -benchtime 200000x; the ids are what callers bring, random ones being the worst case.
func BenchmarkRebuild(b *testing.B) {
	for _, events := range []int{100, 1000, 20_000} {
		b.Run(fmt.Sprintf("batch=%d", events), func(b *testing.B) {
			store, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "tables.db"), sqlite.Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer store.Close()
			projector := projections.NewProjector(store, 0)
			source := newSource(12, 50)
			var entries []projections.Entry
			var spent time.Duration
			start := time.Now()
			b.ResetTimer()
			for done := 0; done < b.N; done += events / 4 {
				entries = source.batch(entries[:0], min(events/4, b.N-done))
				before := cpu(b)
				if err := projector.Project(b.Context(), entries, source.positions()); err != nil {
					b.Fatal(err)
				}
				spent += cpu(b) - before
			}
			b.ReportMetric(float64(spent.Microseconds())/float64(b.N), "cpu-µs/op")
			b.ReportMetric(4*float64(b.N)/spent.Seconds(), "events/cpu-s")
			b.ReportMetric(4*float64(b.N)/time.Since(start).Seconds(), "events/s")
		})
	}
}

// cpu is what the process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// source makes the journal of operations that succeed.
type source struct {
	next  []int64
	made  int
	orgs  []string
	types []string
	now   operation.Time
}

func newSource(partitions, orgs int) *source {
	s := &source{next: make([]int64, partitions), types: []string{"workflow", "bulk-email", "system-event"}, now: 1_800_000_000_000_000}
	for i := range orgs {
		s.orgs = append(s.orgs, fmt.Sprintf("contoso-%d", i))
	}
	return s
}

func (s *source) batch(out []projections.Entry, operations int) []projections.Entry {
	share := (operations + len(s.next) - 1) / len(s.next)
	for p := range s.next {
		n := min(share, operations)
		operations -= n
		for range n {
			out = s.operation(out, int32(p))
		}
	}
	return out
}

func (s *source) operation(out []projections.Entry, partition int32) []projections.Entry {
	s.made++
	s.now += 17
	x := uint64(s.made) * 0x9e3779b97f4a7c15
	x ^= x >> 29
	x *= 0xbf58476d1ce4e5b9
	id := operation.ID(fmt.Sprintf("%08x-%04x-4000-8000-%012x", uint32(x>>32), uint16(x), s.made))
	org := s.orgs[s.made%len(s.orgs)]
	raw := make([]byte, 400)
	for i := range raw {
		raw[i] = 'a' + byte(i%26)
	}
	e := operation.Event{Org: org, ID: id, At: s.now, Cause: operation.Cause{Topic: "requests", Offset: s.next[partition]}}
	add := func(kind operation.EventKind) *operation.Event {
		e.Kind = kind
		out = append(out, projections.Entry{Partition: partition, Place: operation.Place(s.next[partition]), Event: e})
		s.next[partition]++
		return &out[len(out)-1].Event
	}
	add(operation.Requested).Request = &operation.Request{
		ID: id, Organization: org, Type: s.types[s.made%len(s.types)], Name: "Send the newsletter", Priority: 4, Raw: raw,
	}
	e.Attempt, e.Session, e.Cause = 1, "7d0d6a52-0f4e-4f0e-9f0e-4f0e9f0e4f0e", operation.Cause{Topic: "reports", Offset: s.next[partition]}
	add(operation.Dispatched)
	add(operation.Started).StartedAt = s.now
	add(operation.Succeeded)
	return out
}

func (s *source) positions() []projections.Position {
	var out []projections.Position
	for p, next := range s.next {
		out = append(out, projections.Position{Partition: int32(p), Next: next, Chain: make([]byte, 32), At: s.now})
	}
	return out
}

// BenchmarkQueries asks a file of 300 000 operations, of which 20 000 wait to be run.
func BenchmarkQueries(b *testing.B) {
	store, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "tables.db"), sqlite.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	projector := projections.NewProjector(store, 0)
	source := newSource(12, 50)
	var entries []projections.Entry
	for i := range 15 {
		entries = source.batch(entries[:0], 20_000)
		if i == 7 {
			entries = slices.DeleteFunc(entries, func(e projections.Entry) bool { return e.Event.Kind != operation.Requested })
		}
		if err := projector.Project(b.Context(), entries, source.positions()); err != nil {
			b.Fatal(err)
		}
	}
	for name, filter := range map[string]projections.Filter{
		"all":                {},
		"organization":       {Organization: "contoso-7"},
		"ready":              {Statuses: []operation.Status{operation.StatusReady}},
		"ready or failed":    {Statuses: []operation.Status{operation.StatusReady, operation.StatusFailed}},
		"ready of one":       {Statuses: []operation.Status{operation.StatusReady}, Organization: "contoso-7"},
		"type of one":        {Types: []string{"workflow"}, Organization: "contoso-7"},
		"succeeded":          {Statuses: []operation.Status{operation.StatusSucceeded}},
		"nothing, from time": {ModifiedTo: 1},
	} {
		b.Run("list "+name, func(b *testing.B) {
			for b.Loop() {
				if _, err := store.List(b.Context(), filter, projections.NewestFirst, "", 50); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("get", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			e := &entries[i*4%len(entries)].Event
			if _, err := store.Get(b.Context(), e.Org, e.ID); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("states of 100", func(b *testing.B) {
		refs := make([]projections.Ref, 100)
		for i := range refs {
			refs[i] = projections.Ref{Partition: entries[i*4].Partition, Org: entries[i*4].Event.Org, ID: entries[i*4].Event.ID}
		}
		for b.Loop() {
			if _, err := store.States(b.Context(), refs); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("counts", func(b *testing.B) {
		for b.Loop() {
			if _, err := store.Counts(b.Context(), projections.CountFilter{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
