package query

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/projections"
)

// Heard is an event of the journal that changed an operation.
type Heard struct {
	Partition int32
	Place     operation.Place
	At        operation.Time // when it came to the journal
	Org       string
	ID        operation.ID
}

// Follower publishes the changes of tables that other processes write. It hears in the journal what is about to change, and when
// the tables hold it, it reads what the operations have become. While nobody listens it reads nothing.
type Follower struct {
	// Progress asks for the positions; it may be shared.
	Progress *Polled

	store projections.Store
	feed  *Feed
	log   *slog.Logger
	heard chan struct{} // holds a token when there is something new

	mu      sync.Mutex
	ends    map[int32]End
	pending map[projections.Ref]operation.Place // the latest change of each that the tables may not hold yet
	lost    map[int32]operation.Place           // up to where changes were given up
}

// The bounds of a follower.
const (
	pendingMax = 8192 // operations that it remembers to have changed
	statesMax  = 1000 // operations that are read at once
	failedWait = time.Second
)

// NewFollower returns a follower that has heard of nothing, and its Progress, which asks the store at most once in the given
// time.
func NewFollower(store projections.Store, every time.Duration, feed *Feed, log *slog.Logger) *Follower {
	f := &Follower{
		store: store, feed: feed, log: log, heard: make(chan struct{}, 1),
		ends: map[int32]End{}, pending: map[projections.Ref]operation.Place{}, lost: map[int32]operation.Place{},
	}
	f.Progress = NewPolled(store, every, f.End)
	return f
}

// End returns the end of a partition of the journal, as far as the follower has heard.
func (f *Follower) End(partition int32) End {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ends[partition]
}

// Begin tells where the journal ended before the follower heard of anything.
func (f *Follower) Begin(ends map[int32]int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for n, end := range ends {
		if end > f.ends[n].Next {
			f.ends[n] = End{Next: end}
		}
	}
}

// Hear takes up events that stand in the journal now. It never waits.
func (f *Follower) Hear(events []Heard) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range events {
		e := &events[i]
		f.ends[e.Partition] = f.ends[e.Partition].with(e)
		if e.ID == "" {
			continue // of the partition itself
		}
		if len(f.pending) >= pendingMax {
			for ref, place := range f.pending {
				f.lost[ref.Partition] = max(f.lost[ref.Partition], place)
			}
			clear(f.pending)
		}
		f.pending[projections.Ref{Partition: e.Partition, Org: e.Org, ID: e.ID}] = e.Place
	}
	select {
	case f.heard <- struct{}{}:
	default:
	}
}

// Run publishes until ctx ends, and then returns nil.
func (f *Follower) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.heard:
		case <-f.feed.Wanted():
		}
		for wait := f.Progress.every; ctx.Err() == nil; wait = min(wait*3/2, maxPoll) {
			if somebody, _ := f.feed.Listened(); !somebody {
				break // what is pending waits for somebody
			}
			more, err := f.publish(ctx)
			if err == nil && !more {
				break
			}
			if err != nil && ctx.Err() == nil {
				f.log.Warn("changes cannot be published, because the tables cannot be read; they will be", slog.Any("err", err))
				wait = failedWait
			}
			f.pause(ctx, wait)
		}
	}
}

// pause waits, or less when this process has written to the tables itself.
func (f *Follower) pause(ctx context.Context, wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-f.Progress.heardOfMove():
	case <-ctx.Done():
	}
}

// publish hands on what the tables hold, and says whether there is more that they do not hold yet.
func (f *Follower) publish(ctx context.Context) (more bool, err error) {
	f.mu.Lock()
	nothing := len(f.pending)+len(f.lost) == 0
	f.mu.Unlock()
	if nothing {
		return false, nil
	}
	a, _, err := f.Progress.ask(ctx)
	if err != nil {
		return true, err
	}
	reached, gap, more := f.take(a.positions)
	// Who comes after this reads at least what was found, so that nothing is missed between the two.
	_, what := f.feed.Listened()
	if gap || !what && len(reached) > 0 {
		// Nobody is told what these are, so nobody can come back later and be told from there on.
		f.feed.Gap()
	}
	if !what {
		for ref := range reached {
			f.feed.Signal(ref.Org, ref.ID)
		}
		return more, nil
	}
	for refs := range slices.Chunk(slices.Collect(maps.Keys(reached)), statesMax) {
		rows, err := f.store.States(ctx, refs)
		if err != nil {
			f.giveBack(reached)
			return true, err
		}
		slices.SortFunc(rows, func(a, b projections.Row) int {
			return cmp.Or(cmp.Compare(a.ModifiedAt, b.ModifiedAt), cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.LastPlace, b.LastPlace))
		})
		changes := make([]api.Change, len(rows))
		for i := range rows {
			changes[i] = ChangeOf(&rows[i])
		}
		f.feed.Publish(changes)
		for _, ref := range refs {
			delete(reached, ref)
		}
	}
	return more, nil
}

// take returns what the tables hold of what is pending, and forgets it.
func (f *Follower) take(positions map[int32]projections.Position) (reached map[projections.Ref]operation.Place, gap, more bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	reached = map[projections.Ref]operation.Place{}
	for ref, place := range f.pending {
		if int64(place) < positions[ref.Partition].Next {
			reached[ref] = place
			delete(f.pending, ref)
		}
	}
	for n, place := range f.lost {
		if int64(place) < positions[n].Next {
			gap = true
			delete(f.lost, n)
		}
	}
	return reached, gap, len(f.pending)+len(f.lost) > 0
}

// giveBack makes pending what could not be read.
func (f *Follower) giveBack(reached map[projections.Ref]operation.Place) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ref, place := range reached {
		f.pending[ref] = max(f.pending[ref], place)
	}
}
