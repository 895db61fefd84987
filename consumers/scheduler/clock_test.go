package scheduler

import (
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/partition"
)

func TestAPartitionsTimeGoesOnWhileTheWallClockIsBehind(t *testing.T) {
	const second = operation.Time(time.Second / time.Microsecond)
	p := pace{last: 1000 * second, at: 5 * second} // the owner before was ten seconds ahead of this one
	wall := 990 * second
	last := p.last
	for tick := 6 * second; tick <= 35*second; tick += second {
		wall += second
		now := p.now(wall, tick)
		switch behind := wall < now; {
		case now <= last:
			t.Fatalf("expected time to go on, but it went from %s to %s", last.Go(), now.Go())
		case behind && now-last != second/2:
			t.Fatalf("expected half the speed until the wall clock has caught up, but a second took it from %s to %s", last.Go(), now.Go())
		case !behind && now != wall:
			t.Fatalf("expected the wall clock's time %s, but got %s", wall.Go(), now.Go())
		}
		last = now
	}
	if last != wall {
		t.Errorf("expected the two to have met, but the partition's time is %s and the wall clock's %s", last.Go(), wall.Go())
	}
}

func TestWhoSetsTheWallClockEndsNoLeaseAndKeepsNone(t *testing.T) {
	const second = operation.Time(time.Second / time.Microsecond)
	lease := 3 * time.Second
	e := partition.New(partition.Config{Partitions: 1, Lease: lease})
	clock := operation.Cause{Topic: "clock"}
	beat := partition.Heartbeat{Session: "s", Types: []string{"noop"}, Room: 4, Lease: lease}
	wall, tick := 1_000_000*second, 100*second
	step := func() (lost int) {
		e.Tick(tick)
		e.HeardThrough(tick)
		e.Settle(clock, wall)
		for _, ev := range e.Take() {
			if ev.Kind == operation.LeaseWasLost {
				lost++
			}
		}
		return lost
	}
	e.Tick(tick)
	e.Hear(&beat, tick)
	q := request(t, "org", "op", "")
	e.Do(&operation.Command{Kind: operation.Submit, Org: "org", ID: "op", Request: q, Cause: operation.Cause{Topic: partition.Requests}}, wall)
	if step(); !e.State("org", "op").Status.Locked() {
		t.Fatalf("expected the operation to be dispatched, but it is %s", e.State("org", "op").Status)
	}
	wall += 600 * second // somebody sets the clock
	tick += second
	if step() != 0 {
		t.Error("expected the attempt to stay with its session when the wall clock jumps ahead, but its lease was lost")
	}
	wall -= 1200 * second
	tick += 3 * second
	if step() != 1 {
		t.Error("expected the lease to run out on time when the wall clock was set back, but it did not")
	}
}
