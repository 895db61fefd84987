package query

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/projector"
)

// Progress knows how far the tables have come.
type Progress interface {
	// WaitFor returns when the tables hold what stands at the place, or with an error that wraps the context's.
	WaitFor(ctx context.Context, partition int32, place operation.Place) error
	// AsOf returns what the tables hold, and how far that is behind the journal.
	AsOf(ctx context.Context) (api.Positions, time.Duration, error)
}

// Projected is the Progress of a process that projects by itself: nobody asks the database.
type Projected struct{ *projector.Projector }

// AsOf implements Progress.
func (p Projected) AsOf(context.Context) (api.Positions, time.Duration, error) {
	status := p.Status()
	list := make(api.Positions, 0, len(status.Partitions))
	for _, s := range status.Partitions {
		list = held(list, s.Partition, s.Next)
	}
	return list, status.Age, nil
}

// held adds what tables hold that stand before the offset next.
func held(list api.Positions, partition int32, next int64) api.Positions {
	if next == 0 {
		return list
	}
	return append(list, positionOf(partition, operation.Place(next-1)))
}

// Polled is the Progress of a process whose tables another one writes: it asks the database, for all who wait together and
// only while somebody does.
type Polled struct {
	store projections.Reader
	every time.Duration
	lag   func() time.Duration

	mu   sync.Mutex // held while asking
	at   time.Time
	next map[int32]int64
	list api.Positions
}

// NewPolled returns a Progress over the store that asks at most once in the given time. Lag tells how far the tables are
// behind the journal, which the tables do not know.
func NewPolled(store projections.Reader, every time.Duration, lag func() time.Duration) *Polled {
	return &Polled{store: store, every: every, lag: lag}
}

// refresh asks the store unless that was done a moment ago.
func (p *Polled) refresh(ctx context.Context) (map[int32]int64, api.Positions, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next != nil && time.Since(p.at) < p.every {
		return p.next, p.list, nil
	}
	now := time.Now()
	positions, err := p.store.Positions(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("read the positions: %w", err)
	}
	next, list := make(map[int32]int64, len(positions)), make(api.Positions, 0, len(positions))
	for _, pos := range positions {
		next[pos.Partition] = pos.Next
		list = held(list, pos.Partition, pos.Next)
	}
	p.at, p.next, p.list = now, next, list
	return next, list, nil
}

// WaitFor implements Progress.
func (p *Polled) WaitFor(ctx context.Context, partition int32, place operation.Place) error {
	for {
		next, _, err := p.refresh(ctx)
		if err != nil {
			return err
		}
		if int64(place) < next[partition] {
			return nil
		}
		timer := time.NewTimer(p.every)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// AsOf implements Progress.
func (p *Polled) AsOf(ctx context.Context) (api.Positions, time.Duration, error) {
	_, list, err := p.refresh(ctx)
	return list, p.lag(), err
}
