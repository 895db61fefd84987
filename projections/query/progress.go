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
	end   func(partition int32) End

	mu     sync.Mutex
	last   *answer
	asking chan struct{}                  // closed when the one who asks now has an answer, nil when nobody asks
	newer  map[int32]projections.Position // what was advanced to while somebody asks: the answer may be from before that
	moved  chan struct{}                  // closed when the tables are heard to have moved
}

// End is what a process knows of the end of a partition of the journal.
type End struct {
	Next int64          // offset after the last record that it knows of
	Rest int64          // from here on is what came after the partition had rested
	Came operation.Time // the first of that came to the journal; 0 if no rest is known of
	last operation.Time // the last that is known of came to the journal
}

// leastRest is the time without a record that counts as a rest.
const leastRest = 100 * time.Millisecond

// with is what is known when an event is heard of.
func (d End) with(e *Heard) End {
	if next := int64(e.Place) + 1; next > d.Next {
		if d.Next > 0 && e.At.Sub(d.last) >= leastRest {
			d.Rest, d.Came = d.Next, e.At
		}
		d.Next, d.last = next, e.At
	}
	return d
}

// behind is how long what the tables lack has been in the journal. They know the time of the last event that they hold, and after a rest
// that says nothing.
func (d End) behind(at projections.Position, now operation.Time) time.Duration {
	if at.At == 0 || d.Next <= at.Next {
		return 0
	}
	since := at.At
	if at.Next >= d.Rest {
		since = max(since, d.Came)
	}
	return max(now.Sub(since), 0)
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

// NewPolled returns a Progress over the store that asks at most once in the given time. End returns what this process knows of the
// end of the journal's partition: the tables do not know how far they are behind.
func NewPolled(store projections.Reader, every time.Duration, end func(partition int32) End) *Polled {
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
		lag = max(lag, p.end(n).behind(at, now))
	}
	return list, lag, nil
}
