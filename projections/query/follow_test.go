package query_test

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/projections/query"
)

// following is a follower of a world's tables that runs.
func following(t *testing.T, w *world) (*query.Follower, *query.Feed, *slowReader) {
	t.Helper()
	store := &slowReader{Store: w.store, answers: make(chan error)}
	close(store.answers) // answers at once
	feed := query.NewFeed()
	f := query.NewFollower(store, time.Millisecond, feed, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- f.Run(t.Context()) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Errorf("expected the follower to end without an error, but got %v", err)
		}
	})
	return f, feed, store
}

func taken(t *testing.T, sub *query.Subscription) query.Taken {
	t.Helper()
	timer := time.NewTimer(30 * time.Second)
	defer timer.Stop()
	select {
	case <-sub.Ready():
	case <-timer.C:
		t.Fatal("expected something to be published")
	}
	return sub.Take()
}

// TestFollowerPublishesWhatTheTablesHold: a change is heard of before the tables hold it, and published when they do.
func TestFollowerPublishesWhatTheTablesHold(t *testing.T) {
	w := newWorld(t)
	f, feed, store := following(t, w)
	sub := feed.Subscribe(query.Interest{})
	defer sub.Close()
	f.Hear([]query.Heard{{Partition: 0, Place: 0, Org: "acme", ID: "a"}})
	// It has asked, and has not found it: the second question begins after the first is done with.
	for store.asked.Load() < 2 {
		<-time.After(time.Millisecond)
	}
	if got := sub.Take(); len(got.Items) != 0 || got.Reset {
		t.Fatalf("expected nothing to be published yet, but got %+v", got)
	}
	w.simple("a", "import")
	got := taken(t, sub)
	if len(got.Items) != 1 || got.Items[0].Change.ID != "a" || got.Items[0].Change.Type != "import" || got.Reset {
		t.Errorf("expected the operation, but got %+v", got)
	}
	if f.End(0).Next != 1 {
		t.Errorf("expected the journal to end at 1, but got %d", f.End(0).Next)
	}
}

// TestFollowerWaitsForListeners: what nobody listens to is read by nobody, and published to the first who comes.
func TestFollowerWaitsForListeners(t *testing.T) {
	w := newWorld(t)
	f, feed, store := following(t, w)
	w.simple("a", "import")
	f.Hear([]query.Heard{{Partition: 0, Place: 0, Org: "acme", ID: "a"}})
	f.Hear([]query.Heard{{Partition: 0, Place: 1}}) // of the partition itself
	if store.asked.Load() != 0 {
		t.Error("expected the database not to be asked while nobody listens")
	}
	sub := feed.Subscribe(query.Interest{Organization: "acme"})
	defer sub.Close()
	if got := taken(t, sub); len(got.Items) != 1 || got.Items[0].Change.ID != "a" {
		t.Errorf("expected the operation, but got %+v", got)
	}
}

// TestFollowerGivesUp: who comes when more was given up than is remembered is told to read again.
func TestFollowerGivesUp(t *testing.T) {
	w := newWorld(t)
	f, feed, _ := following(t, w)
	w.simple("a", "import")
	events := make([]query.Heard, 10_000)
	for i := range events {
		events[i] = query.Heard{Partition: 0, Place: 0, Org: "acme", ID: operation.ID(fmt.Sprint(i))}
	}
	before := feed.Subscribe(query.Interest{})
	at := before.Take().At
	before.Close()
	f.Hear(events)
	sub := feed.Subscribe(query.Interest{Organization: "acme"})
	defer sub.Close()
	if got := taken(t, sub); !got.Reset {
		t.Errorf("expected a reset, but got %+v", got)
	}
	back := feed.Subscribe(query.Interest{LastEventID: at})
	defer back.Close()
	if !back.Take().Reset {
		t.Error("expected a reset for one who comes back")
	}
}

// TestFollowerSignals: one who waits for one operation is woken, and what others became is read by nobody. Whoever comes back to
// a stream later cannot be told of it.
func TestFollowerSignals(t *testing.T) {
	w := newWorld(t)
	f, feed, _ := following(t, w)
	before := feed.Subscribe(query.Interest{})
	at := before.Take().At
	before.Close()
	sub := feed.Subscribe(query.Interest{Organization: "acme", ID: "b", SignalOnly: true})
	defer sub.Close()
	w.simple("a", "import")
	w.simple("b", "import")
	f.Hear([]query.Heard{{Partition: 0, Place: 0, Org: "acme", ID: "a"}, {Partition: 0, Place: 1, Org: "acme", ID: "b"}})
	taken(t, sub)
	back := feed.Subscribe(query.Interest{LastEventID: at})
	defer back.Close()
	if !back.Take().Reset {
		t.Error("expected a reset for one who comes back")
	}
}
