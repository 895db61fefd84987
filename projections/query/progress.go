package query

import (
	"context"
	"errors"
	"maps"
	"slices"
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
func (p Projected) AsOf(ctx context.Context) (api.Positions, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if err := p.Begun(ctx); err != nil {
		return nil, 0, err
	}
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

// Polled is the Progress of a process whose tables others write too: it asks the database, for all who wait together and only
// while somebody does.
type Polled struct {
	store projections.Reader
	every time.Duration
	end   func(partition int32) int64

	mu     sync.Mutex
	last   *answer
	asking chan struct{}                  // closed when the one who asks now has an answer, nil when nobody asks
	newer  map[int32]projections.Position // what was advanced to while somebody asks: the answer may be from before that
	moved  chan struct{}                  // closed when the tables are heard to have moved
}

// answer is what the store has said, and when.
type answer struct {
	at        time.Time
	positions map[int32]projections.Position
	err       error
}

// The times of Polled.
const (
	askTime = 5 * time.Second        // for the database to answer
	maxPoll = 250 * time.Millisecond // between two questions for somebody who waits for long
)

// NewPolled returns a Progress over the store that asks at most once in the given time. End returns the offset after the last
// record of the journal's partition that this process knows of: the tables do not know how far they are behind.
func NewPolled(store projections.Reader, every time.Duration, end func(partition int32) int64) *Polled {
	return &Polled{store: store, every: every, end: end, moved: make(chan struct{})}
}

// Advance tells of what this process has written itself, so that nobody need ask. It is for projector.Config.OnCommitted.
func (p *Polled) Advance(steps []projections.Step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asking != nil {
		for i := range steps {
			p.newer[steps[i].To.Partition] = steps[i].To
		}
	}
	if p.last == nil || p.last.err != nil {
		return
	}
	positions := maps.Clone(p.last.positions)
	for i := range steps {
		advance(positions, steps[i].To)
	}
	p.last = &answer{at: p.last.at, positions: positions}
	close(p.moved)
	p.moved = make(chan struct{})
}

func advance(positions map[int32]projections.Position, to projections.Position) {
	if to.Next > positions[to.Partition].Next {
		positions[to.Partition] = to
	}
}

// heardOfMove returns what is closed when the tables are heard to have moved.
func (p *Polled) heardOfMove() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.moved
}

// ask returns what the tables hold, as it was said at most p.every ago. All who ask at the same time are given one answer.
func (p *Polled) ask(ctx context.Context) (*answer, <-chan struct{}, error) {
	for {
		p.mu.Lock()
		if a := p.last; a != nil && time.Since(a.at) < p.every {
			moved := p.moved
			p.mu.Unlock()
			return a, moved, a.err
		}
		asking := p.asking
		if asking == nil {
			asking = make(chan struct{})
			p.asking, p.newer = asking, map[int32]projections.Position{}
			go p.find(context.WithoutCancel(ctx), asking)
		}
		p.mu.Unlock()
		select {
		case <-asking:
			p.mu.Lock()
			a, moved := p.last, p.moved
			p.mu.Unlock()
			return a, moved, a.err
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

func (p *Polled) find(ctx context.Context, asking chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	list, err := p.store.Positions(ctx)
	a := &answer{at: time.Now(), positions: make(map[int32]projections.Position, len(list)), err: err}
	if err != nil {
		// Without the chain of errors: that the question took too long does not mean that the caller's time is over.
		a.err = errors.New("read the positions: " + err.Error())
	}
	for _, at := range list {
		a.positions[at.Partition] = at
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, at := range p.newer {
		advance(a.positions, at)
	}
	p.last, p.asking, p.newer = a, nil, nil
	close(asking)
}

// WaitFor implements Progress.
func (p *Polled) WaitFor(ctx context.Context, partition int32, place operation.Place) error {
	for wait := p.every; ; wait = min(wait*3/2, maxPoll) {
		a, moved, err := p.ask(ctx)
		if err != nil {
			return err
		}
		if int64(place) < a.positions[partition].Next {
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-moved:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// AsOf implements Progress.
func (p *Polled) AsOf(ctx context.Context) (api.Positions, time.Duration, error) {
	a, _, err := p.ask(ctx)
	if err != nil {
		return nil, 0, err
	}
	now := operation.TimeOf(time.Now())
	list, lag := make(api.Positions, 0, len(a.positions)), time.Duration(0)
	for _, n := range slices.Sorted(maps.Keys(a.positions)) {
		at := a.positions[n]
		list = held(list, n, at.Next)
		if at.At != 0 && p.end(n) > at.Next {
			lag = max(lag, now.Sub(at.At))
		}
	}
	return list, lag, nil
}
