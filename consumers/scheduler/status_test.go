package scheduler

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/schemas"
)

// TestStatusTellsWhatWaits also has somebody else write to the journal, whose record displaces the scheduler's next append.
func TestStatusTellsWhatWaits(t *testing.T) { each(t, 1, testStatusTellsWhatWaits) }

func testStatusTellsWhatWaits(t *testing.T, on service) {
	s, err := New(Config{Client: on.client, Topics: on.topics, Owner: "a", Engine: partition.Config{Lease: 3 * time.Second}, CheckpointEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	until := func(what string, so func(Status) bool) {
		t.Helper()
		untilStatus(t, s, what, so)
	}
	until("an active partition", func(s Status) bool { return s.Active })
	put := func(ids ...string) {
		t.Helper()
		var records []*kgo.Record
		for _, id := range ids {
			records = append(records, schemas.EncodeRequest(on.topics, request(t, "o", id, "token")))
		}
		produce(t, on, records...)
	}
	put("1", "2", "3")
	until("one that is ready, of a type that nobody serves, and two behind it", func(s Status) bool {
		return s.Live == 3 && s.Waiting[operation.WaitResources] == 1 && s.Waiting[operation.WaitDependency] == 2 && s.Backlog == 0 && s.Undecided == 0
	})
	until("a checkpoint of everything", func(s Status) bool { return s.SinceCheckpoint == 0 && s.CheckpointAge == 0 })
	produce(t, on, &kgo.Record{Topic: on.topics.Journal(), Partition: 0, Value: []byte("somebody else's")})
	put("4")
	c := s.Counters()
	until("the partition to be recovered", func(s Status) bool {
		return s.Active && s.Waiting[operation.WaitDependency] == 3 && c.Recoveries.Load() == 2
	})
	if c.Displaced.Load() == 0 || c.Void.Load() == 0 || c.Failed.Load() == 0 || c.Recoveries.Load() < 2 || c.Recovering.Load() == 0 || c.Appended.Load() < 4 || c.Sets.Load() == 0 {
		t.Errorf("expected an append that was displaced, and a recovery that met what displaced it, but got %+v", c)
	}
	session := newSession(t, on, "session-1")
	serving, stop := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() {
		defer close(served)
		session.serve(serving, succeed)
	}()
	until("nothing to be left", func(s Status) bool { return s.Live == 0 && s.Waiting[operation.WaitResources] == 0 && s.Backlog == 0 })
	stop()
	<-served
}

// untilStatus waits for a status of a partition, which changes a moment after the journal.
func untilStatus(t *testing.T, s *Scheduler, what string, so func(Status) bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for {
		all := s.Status()
		if slices.ContainsFunc(all, so) {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("expected %s, but got %+v", what, all)
		}
	}
}
