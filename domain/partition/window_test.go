package partition

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/opstream/opstream/domain/operation"
)

// TestWindow compares the ring with a plain list, also long after it has wrapped around.
func TestWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		capacity := rapid.IntRange(1, 8).Draw(t, "capacity")
		w := newWindow(capacity)
		var all []Known
		for i, id := range rapid.SliceOfN(rapid.ByteRange(0, 9), 0, 60).Draw(t, "ids") {
			k := Known{Hash: IDHash{id}, Body: uint64(i), Status: operation.StatusSucceeded}
			w.add(k)
			all = append(all, k)
			last := all[max(0, len(all)-capacity):]
			for id := range byte(10) {
				var want *Known
				for j := range last {
					if last[j].Hash == (IDHash{id}) {
						want = &last[j]
					}
				}
				got := w.find(IDHash{id})
				if (got == nil) != (want == nil) || got != nil && *got != *want {
					t.Fatalf("after %d entries, capacity %d, id %d: expected %v, but got %v", len(all), capacity, id, want, got)
				}
			}
			if got := w.since(0); !slices.Equal(got, last) {
				t.Fatalf("expected all entries to be %v, but got %v", last, got)
			}
			if i > 2 {
				since := max(uint64(i-2), uint64(len(all)-len(last)))
				if got := w.since(uint64(i - 2)); !slices.Equal(got, all[since:]) {
					t.Fatalf("expected the entries since %d to be %v, but got %v", i-2, all[since:], got)
				}
			}
		}
		taken := 0
		for _, n := range w.table {
			if n != 0 {
				taken++
			}
		}
		if taken > capacity || 2*taken > len(w.table) {
			t.Fatalf("expected at most %d ids in at most half of the table, but got %d of %d", capacity, taken, len(w.table))
		}
	})
}

// TestQueuesForget submits and cancels what nobody serves, under ever new organizations and types: nothing may be left.
func TestQueuesForget(t *testing.T) {
	e := New(Config{KnownMax: 16, FailedMax: 4})
	name := func(i int) string {
		return string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676%26))
	}
	for i := range 5000 {
		q := &operation.Request{ID: operation.ID(name(i)), Organization: name(i), Type: name(i / 2), DependencyToken: name(i), Raw: []byte("{}")}
		e.Do(&operation.Command{Kind: operation.Submit, Org: q.Organization, ID: q.ID, Request: q, Cause: operation.Cause{Topic: Requests, Offset: int64(2 * i)}}, 1)
		until := operation.Time(1000 + i)
		for j, kind := range []operation.CommandKind{operation.Postpone, operation.Resume, operation.Cancel} {
			e.Do(&operation.Command{Kind: kind, Org: q.Organization, ID: q.ID, Until: until, Cause: operation.Cause{Topic: Signals, Offset: int64(3*i + j)}}, 1)
		}
		e.Settle(operation.Cause{Topic: "clock"}, 1)
		e.Take()
	}
	left := 0
	for _, q := range e.queues {
		for p := range q.levels {
			left += len(q.levels[p].turn) + len(q.levels[p].byOrg)
		}
	}
	if len(e.ops)+len(e.chains)+len(e.timers.entries)+len(e.changed)+len(e.gone)+len(e.settling)+len(e.tied)+left > 0 ||
		len(e.queues) > queuesKept || cap(e.timers.entries) > 64 || cap(e.settling) > 64 {
		t.Errorf("expected nothing to be left, but there are %d operations, %d chains, %d queues of %d kept with %d organizations, %d timers, %d changed, %d gone",
			len(e.ops), len(e.chains), len(e.queues), queuesKept, left, len(e.timers.entries), len(e.changed), len(e.gone))
	}
	if err := e.Check(); err != nil {
		t.Error(err)
	}
}

// TestQueuesForgetWhomTheyServed dispatches one operation after the other, each of another organization.
func TestQueuesForgetWhomTheyServed(t *testing.T) {
	e := New(Config{KnownMax: 16, Partitions: 1})
	e.Hear(&Heartbeat{Session: "w", Types: []string{"t"}, Room: 10_000, Lease: time.Hour}, 1)
	for i := range 5000 {
		id := operation.ID(fmt.Sprint(i))
		q := &operation.Request{ID: id, Organization: string(id), Type: "t", Raw: []byte("{}")}
		e.Do(&operation.Command{Kind: operation.Submit, Org: q.Organization, ID: id, Request: q, Cause: operation.Cause{Topic: Requests, Offset: int64(i)}}, 1)
		e.Settle(operation.Cause{Topic: "clock"}, 1)
		if events := e.Take(); len(events) != 2 || events[1].Kind != operation.Dispatched {
			t.Fatalf("expected %s to be dispatched", id)
		}
	}
	for p := range e.queues["t"].levels {
		if l := &e.queues["t"].levels[p]; len(l.turn) > spareMax+1 || len(l.byOrg) != len(l.turn) {
			t.Errorf("expected a queue that is empty to know %d organizations at most, but it has turns for %d and names of %d", spareMax+1, len(l.turn), len(l.byOrg))
		}
	}
	if err := e.Check(); err != nil {
		t.Error(err)
	}
}

// TestTypesThatNobodyServesCostTheOthersNothing: callers choose the names of types, perhaps another one for each operation.
func TestTypesThatNobodyServesCostTheOthersNothing(t *testing.T) {
	e := New(Config{Partitions: 1})
	e.Hear(&Heartbeat{Session: "w", Types: []string{"t", "u"}, Room: 10, Lease: time.Hour}, 1)
	for i := range 2000 {
		id := operation.ID(fmt.Sprint(i))
		q := &operation.Request{ID: id, Organization: "o", Type: string(id), Raw: []byte("{}")}
		if i%1000 == 999 {
			q.Type = "t"
		}
		e.Do(&operation.Command{Kind: operation.Submit, Org: "o", ID: id, Request: q, Cause: operation.Cause{Topic: Requests, Offset: int64(i)}}, 1)
	}
	e.Settle(operation.Cause{Topic: "clock"}, 1)
	if open := e.Outbox().Len(); open != 2 {
		t.Errorf("expected both operations that somebody serves to be dispatched, but %d are", open)
	}
	if cap(e.asked) > 16 {
		t.Errorf("expected the two types that somebody serves to be looked at, but %d were", cap(e.asked))
	}
	if err := e.Check(); err != nil {
		t.Error(err)
	}
}
