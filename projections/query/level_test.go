package query_test

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/projections"
)

// level is a query.Progress that the test moves forward.
type level struct {
	mu      sync.Mutex
	held    map[int32]int64 // first offset not yet held, by partition
	lag     time.Duration
	down    error
	waits   chan struct{} // told when somebody begins to wait
	waiting map[int32][]*waiter
}

type waiter struct {
	place operation.Place
	done  chan struct{}
}

// newLevel returns a level that holds nothing.
func newLevel() *level {
	return &level{held: map[int32]int64{}, waiting: map[int32][]*waiter{}, waits: make(chan struct{}, 100)}
}

// advance takes the positions that a written batch led to, and how far they are behind the journal.
func (l *level) advance(positions []projections.Position, lag time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lag = lag
	for _, p := range positions {
		l.held[p.Partition] = p.Next
		list := l.waiting[p.Partition]
		rest := list[:0]
		for _, w := range list {
			if int64(w.place) < p.Next {
				close(w.done)
			} else {
				rest = append(rest, w)
			}
		}
		clear(list[len(rest):])
		if len(rest) == 0 {
			delete(l.waiting, p.Partition)
		} else {
			l.waiting[p.Partition] = rest
		}
	}
}

// WaitFor implements query.Progress.
func (l *level) WaitFor(ctx context.Context, partition int32, place operation.Place) error {
	l.mu.Lock()
	if int64(place) < l.held[partition] {
		l.mu.Unlock()
		return nil
	}
	w := &waiter{place, make(chan struct{})}
	l.waiting[partition] = append(l.waiting[partition], w)
	l.mu.Unlock()
	l.waits <- struct{}{}
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		l.forget(partition, w)
		return ctx.Err()
	}
}

func (l *level) forget(partition int32, gone *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.waiting[partition]
	for i, w := range list {
		if w == gone {
			list[i] = list[len(list)-1]
			list[len(list)-1] = nil
			l.waiting[partition] = list[:len(list)-1]
			break
		}
	}
	if len(l.waiting[partition]) == 0 {
		delete(l.waiting, partition)
	}
}

// AsOf implements query.Progress.
func (l *level) AsOf(context.Context) (api.Positions, time.Duration, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down != nil {
		return nil, 0, l.down
	}
	var list api.Positions
	for partition, next := range l.held {
		if next == 0 {
			continue
		}
		list = append(list, api.Position{Partition: partition, Place: operation.Place(next - 1)})
	}
	slices.SortFunc(list, func(a, b api.Position) int { return int(a.Partition - b.Partition) })
	return list, l.lag, nil
}
