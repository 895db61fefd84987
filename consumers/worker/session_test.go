package worker

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/schemas"
)

// A process that was frozen wakes with its timers late. What it does first must see that the lease is gone.
func TestLeaseIsCheckedBeforeEveryStepNotOnlyByTheTimer(t *testing.T) {
	w, err := New(Config{Brokers: []string{"localhost:1"}, Handlers: handlers(func(context.Context, *Operation) (any, error) { return nil, nil })})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s := &session{w: w, id: "s", memory: newMemory(), base: t.Context(), changed: make(chan struct{}, 1), overC: make(chan struct{})}
	s.timer = time.NewTimer(time.Hour) // the tick that never comes
	defer s.timer.Stop()
	s.armed = now.Add(time.Hour)
	s.lease = since{now, now}
	it := &schemas.Item{Session: "s", Place: 5, Org: "acme", ID: "a", Attempt: 1, Request: &operation.Request{ID: "a", Organization: "acme", Type: "test"}}
	a := s.newAttempt(spot{0, 5}, it)
	s.memory.begin(a.at, a)
	s.grant(a, now)
	waiting := s.newAttempt(spot{0, 6}, it)
	s.memory.begin(waiting.at, waiting)
	s.queue = append(s.queue, waiting)

	s.lease = since{now.Add(-w.cfg.Lease), now.Add(-w.cfg.Lease)}
	// With a report or a start these would reach for the client or the routes, which are not there.
	it.Place = 7
	s.offer(it)
	s.halt(&schemas.Stop{Session: "s", Place: 8, Org: "acme", ID: "b", Attempt: 1})
	if err := a.Progress(t.Context(), raw(`1`)); err != ErrLeaseLost {
		t.Errorf("expected progress to be refused with %v, but got %v", ErrLeaseLost, err)
	}
	if err := a.SaveCheckpoint(t.Context(), raw(`1`)); err != ErrLeaseLost {
		t.Errorf("expected a checkpoint to be refused with %v, but got %v", ErrLeaseLost, err)
	}
	s.finish(a, nil)
	if len(s.queue) != 1 || s.unsent.Load() != 0 || s.memory.running[spot{0, 7}] != nil {
		t.Errorf("expected nothing started and nothing reported, but %d wait, %d reports are on their way", len(s.queue), s.unsent.Load())
	}
	if s.armed.After(time.Now()) {
		t.Errorf("expected the timer to be due now, but it is at %s", s.armed)
	}
}

// TestFrozenBetweenTheSlotAndTheHandler: a process that was frozen when an attempt had its slot and its handler was not called yet does not
// call it any more when it wakes.
func TestFrozenBetweenTheSlotAndTheHandler(t *testing.T) {
	w, err := New(Config{
		Brokers: []string{"localhost:1"}, Handlers: handlers(func(context.Context, *Operation) (any, error) { return nil, nil }), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, frozen := range []time.Duration{0, w.cfg.Lease} {
		now := time.Now()
		s := &session{
			w: w, id: "s", memory: newMemory(), base: t.Context(), changed: make(chan struct{}, 1), overC: make(chan struct{}),
			timer: time.NewTimer(time.Hour), armed: now.Add(time.Hour), lease: since{now, now},
		}
		defer s.timer.Stop()
		a := s.newAttempt(spot{0, 5}, &schemas.Item{
			Session: "s", Place: 5, Org: "acme", ID: "a", Attempt: 1, Request: &operation.Request{ID: "a", Organization: "acme", Type: "test"},
		})
		s.memory.begin(a.at, a)
		msg := message.NewMessage("a", nil)
		msg.SetContext(s.grant(a, now))
		s.lease = since{now.Add(-frozen), now.Add(-frozen)}
		called := false
		if _, err := outermost(func(*message.Message) ([]*message.Message, error) {
			called = true
			s.end(false) // so that there is nothing to report, for which there is no client
			return nil, nil
		})(msg); err != nil {
			t.Error(err)
		}
		if called != (frozen == 0) || !s.isOver() || s.busy != 0 || s.unsent.Load() != 0 || msg.Context().Err() == nil {
			t.Errorf("frozen for %s: expected the handler to be called only of a session that lives, and its slot to be free, but called is %t, over %t, %d slots are taken, %d reports are on their way",
				frozen, called, s.isOver(), s.busy, s.unsent.Load())
		}
	}
}

func TestSinceTrustsTheClockThatSaysMore(t *testing.T) {
	now := time.Now()
	wall := now.Round(0)
	for _, tt := range []struct {
		name            string
		monotonic, wall time.Duration // what each clock says has passed
		want            time.Duration
	}{
		{"both agree", time.Second, time.Second, time.Second},
		{"the machine slept", 0, time.Hour, time.Hour},
		{"the clock was set forward", time.Second, time.Minute, time.Minute},
		{"the clock was set back", time.Second, -time.Minute, time.Second},
	} {
		if d := (since{now, wall}).elapsed(now.Add(tt.monotonic), wall.Add(tt.wall)); d != tt.want {
			t.Errorf("%s: expected %s, but got %s", tt.name, tt.want, d)
		}
	}
}

// A worker whose wall clock was set forward by more than its lease cannot know that it did not sleep, and stops.
func TestLeaseIsLostByTheWallClockAlone(t *testing.T) {
	clock := time.Now().Round(0)
	w, err := New(Config{
		Brokers: []string{"localhost:1"}, Handlers: handlers(func(context.Context, *Operation) (any, error) { return nil, nil }),
		Now: func() time.Time { return clock },
	})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s := &session{w: w, id: "s", memory: newMemory(), lease: since{now, clock}, timer: time.NewTimer(time.Hour), armed: now}
	defer s.timer.Stop()
	clock = clock.Add(-10 * time.Minute)
	if err := s.mayReport(nil, now); err != nil {
		t.Errorf("expected a clock that was set back to change nothing, but got %v", err)
	}
	clock = clock.Add(10*time.Minute + w.cfg.Lease)
	if err := s.mayReport(nil, now); err != ErrLeaseLost {
		t.Errorf("expected %v, but got %v", ErrLeaseLost, err)
	}
}
