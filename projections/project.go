package projections

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/opstream/opstream/domain/operation"
)

// DefaultMaxLive is how many operations a Projector remembers between batches when it is not told otherwise. Each takes about
// one KiB.
const DefaultMaxLive = 200_000

// Projector folds the journal into a store. It is for one goroutine.
//
// It remembers the operations that have not ended, so that a batch of their events needs no reading; what it has forgotten
// or never knew it asks the store for. What is remembered changes the speed, never the tables.
type Projector struct {
	// OnCommitted, if set, is called after each batch that the store has written, by the goroutine that calls Project. The batch
	// and what it points to are valid during the call only.
	OnCommitted func(*Batch)

	store   Store
	maxLive int
	next    map[int32]int64 // nil when it must be read from the store
	begin   map[int32]int64 // where the events of the next call begin, see Begin
	live    map[Ref]*tracked

	// Used again for each batch.
	batch    Batch
	found    []*tracked // by entry: what the event is about, nil for none
	touched  []*tracked
	missing  []*tracked
	refs     []Ref
	counts   map[countKey]int64
	finished map[int32]Position
	free     []*tracked
}

// tracked is an operation that the projector works on.
type tracked struct {
	row    Row
	ref    Ref
	absent bool // the tables do not have it

	// Of the current batch.
	touched bool
	isNew   bool
	written bool
	was     countKey // before the batch, unless isNew
	request []byte
	first   operation.Place
	history []byte
}

type countKey struct {
	org, kind string
	status    operation.Status
	wait      operation.Wait
}

// NewProjector makes a projector that remembers up to maxLive operations, 0 meaning [DefaultMaxLive].
func NewProjector(store Store, maxLive int) *Projector {
	if maxLive <= 0 {
		maxLive = DefaultMaxLive
	}
	return &Projector{store: store, maxLive: maxLive, live: map[Ref]*tracked{}, counts: map[countKey]int64{}, finished: map[int32]Position{}}
}

// UnknownOperationError says that an event changes an operation that the tables do not have. The journal cannot say so of
// itself: the tables were changed by something else, or the journal was read from a wrong place.
type UnknownOperationError struct {
	Partition int32
	Place     operation.Place
	Event     operation.EventKind
	Org       string
	ID        operation.ID
}

func (e *UnknownOperationError) Error() string {
	return fmt.Sprintf("expected operation %q of organization %q in the tables, but the event %s at offset %d of partition %d is the first of it; rebuild the tables: remove their database and start again",
		e.ID, e.Org, e.Event, e.Place, e.Partition)
}

// Begin tells where in each partition the events begin that are given to Project next, each call going on where the last one that was
// written ended. Tables that turn out to stand before that are refused with a *PositionError: an older copy has taken their place, a
// backup or a replica that had not heard of everything, and what happened in between would be left out of it. Then Begin is to be
// called with where they stand. Without Begin nobody looks.
func (p *Projector) Begin(at map[int32]int64) { p.begin = maps.Clone(at) }

// Project writes valid events, in order within each partition, and the positions after them. What the tables have already is left
// out, so that events which come again change nothing. After an error nothing is written, and the same call may be made
// again.
func (p *Projector) Project(ctx context.Context, entries []Entry, positions []Position) error {
	err := p.project(ctx, entries, positions)
	if err != nil {
		p.forget()
	}
	return err
}

// forget makes the projector ask the store for everything: after a failure nobody knows which of the two is ahead.
func (p *Projector) forget() {
	p.next = nil
	clear(p.live)
	p.free = p.free[:0]
	p.touched, p.missing = p.touched[:0], p.missing[:0]
	clear(p.found)
}

func (p *Projector) project(ctx context.Context, entries []Entry, positions []Position) error {
	if p.next == nil {
		have, err := p.store.Positions(ctx)
		if err != nil {
			return fmt.Errorf("read the positions: %w", err)
		}
		p.next = make(map[int32]int64, len(have))
		for _, h := range have {
			p.next[h.Partition] = h.Next
		}
	}
	b := &p.batch
	b.Changes, b.Deleted, b.Rejections, b.Counts, b.Steps = b.Changes[:0], b.Deleted[:0], b.Rejections[:0], b.Counts[:0], b.Steps[:0]
	clear(p.finished)
	for _, to := range positions {
		p.finished[to.Partition] = to
		from := p.next[to.Partition]
		if begin := p.begin[to.Partition]; from < begin {
			return &PositionError{Partition: to.Partition, Have: from, Want: begin}
		}
		if to.Next > from {
			b.Steps = append(b.Steps, Step{From: from, To: to})
		}
	}
	if err := p.find(ctx, entries); err != nil {
		return err
	}
	if err := p.fold(entries); err != nil {
		return p.orMoved(ctx, err)
	}
	p.collect()
	if len(b.Steps) == 0 {
		return nil
	}
	if err := p.store.Apply(ctx, b); err != nil {
		return fmt.Errorf("write %d events of %d operations: %w", len(entries), len(b.Changes), err)
	}
	for _, s := range b.Steps {
		p.next[s.To.Partition] = s.To.Next
		if p.begin != nil {
			p.begin[s.To.Partition] = s.To.Next
		}
	}
	if p.OnCommitted != nil {
		p.OnCommitted(b)
	}
	p.settle()
	return nil
}

// orMoved returns err, or a *PositionError if it comes from tables that do not stand where they are believed to: an older copy of them
// lacks operations, and no event contradicts it.
func (p *Projector) orMoved(ctx context.Context, err error) error {
	var unknown *UnknownOperationError
	if !errors.As(err, &unknown) {
		return err
	}
	have, failed := p.store.Positions(ctx)
	if failed != nil {
		return fmt.Errorf("read the positions: %w", failed)
	}
	now := int64(0)
	for _, h := range have {
		if h.Partition == unknown.Partition {
			now = h.Next
		}
	}
	if want := p.next[unknown.Partition]; now != want {
		return &PositionError{Partition: unknown.Partition, Have: now, Want: want}
	}
	return err
}

// find says for each event which operation it is about, asking the store at most once.
func (p *Projector) find(ctx context.Context, entries []Entry) error {
	if cap(p.found) < len(entries) {
		p.found = make([]*tracked, len(entries), len(entries)*5/4)
	}
	p.found = p.found[:len(entries)]
	p.missing, p.refs = p.missing[:0], p.refs[:0]
	partition, next, end := int32(-1), int64(0), int64(0)
	for i := range entries {
		e := &entries[i]
		p.found[i] = nil
		if e.Partition != partition {
			to, ok := p.finished[e.Partition]
			if !ok || e.Partition < 0 || e.Partition > MaxPartition {
				return fmt.Errorf("expected a position for partition %d (0 to %d), whose event at offset %d is to be projected, but there is none", e.Partition, MaxPartition, e.Place)
			}
			partition, next, end = e.Partition, p.next[e.Partition], to.Next
		}
		if int64(e.Place) >= end || e.Place < 0 || e.Place > MaxPlace {
			return fmt.Errorf("expected events of partition %d below offset %d, but got one at %d", partition, min(end, int64(MaxPlace)+1), e.Place)
		}
		if int64(e.Place) < next || !about(&e.Event) {
			continue
		}
		ref := Ref{e.Partition, e.Event.Org, e.Event.ID}
		if e.Event.Kind == operation.Requested {
			t := p.track(ref)
			t.isNew = true
			p.found[i] = t
			continue
		}
		t := p.live[ref]
		if t == nil {
			t = p.track(ref)
			p.missing, p.refs = append(p.missing, t), append(p.refs, ref)
		}
		p.found[i] = t
	}
	if len(p.refs) == 0 {
		return nil
	}
	rows, err := p.store.States(ctx, p.refs)
	if err != nil {
		return fmt.Errorf("read %d operations: %w", len(p.refs), err)
	}
	asked := make(map[Ref]*tracked, len(p.missing))
	for _, t := range p.missing {
		t.absent = true
		asked[t.ref] = t
	}
	for i := range rows {
		if t := asked[Ref{rows[i].Partition, rows[i].Org, rows[i].ID}]; t != nil {
			t.row, t.absent = rows[i], false
		}
	}
	return nil
}

// about says whether the event is about an operation.
func about(e *operation.Event) bool {
	return e.Kind.Changes() || e.Kind == operation.Rejected || e.Kind == operation.Unchanged
}

// track begins to follow an operation; the latest of a name takes its place.
func (p *Projector) track(ref Ref) *tracked {
	var t *tracked
	if n := len(p.free); n > 0 {
		t, p.free = p.free[n-1], p.free[:n-1]
		*t = tracked{history: t.history[:0]}
	} else {
		t = &tracked{}
	}
	t.ref = ref
	t.row.Partition = ref.Partition
	p.live[ref] = t
	return t
}

// fold applies the events.
func (p *Projector) fold(entries []Entry) error {
	p.touched = p.touched[:0]
	for i, t := range p.found {
		if t == nil {
			continue
		}
		e := &entries[i]
		if t.absent {
			switch e.Event.Kind {
			case operation.Rejected:
				p.batch.Rejections = append(p.batch.Rejections, rejection(e))
			case operation.Unchanged, operation.Deleted:
				// Somebody deleted what is deleted, or what never was: there is nowhere to write it, and nothing is lost.
			default:
				return &UnknownOperationError{e.Partition, e.Place, e.Event.Kind, e.Event.Org, e.Event.ID}
			}
			continue
		}
		if !t.touched {
			t.touched, t.first = true, e.Place
			if !t.isNew {
				t.was = t.row.countKey()
			}
			p.touched = append(p.touched, t)
		}
		if e.Event.Kind.Changes() {
			t.written = true
			t.row.State.Apply(&e.Event, e.Place)
			switch e.Event.Kind {
			case operation.Requested, operation.Retried:
				if t.row.Request == nil {
					return fmt.Errorf("expected a request in the event %s at offset %d of partition %d, but there is none", e.Event.Kind, e.Place, e.Partition)
				}
				t.request = t.row.Request.Raw
				if t.request == nil {
					t.request = []byte{}
				}
			case operation.Deleted:
				t.absent = true // for what follows
			}
		}
		t.history = AppendHistory(t.history, &e.Event, e.Place)
	}
	return nil
}

func rejection(e *Entry) Rejection {
	v := &e.Event
	return Rejection{
		Partition: e.Partition, Place: e.Place, Org: v.Org, ID: v.ID, At: v.At, Command: v.Command, CommandID: v.CommandID,
		Code: v.Code, Reason: v.Reason, By: v.By, Cause: v.Cause,
	}
}

func (r *Row) countKey() countKey {
	return countKey{r.Org, r.Request.Type, r.Status, r.Wait()}
}

// collect makes the batch of what was touched.
func (p *Projector) collect() {
	b := &p.batch
	clear(p.counts)
	for _, t := range p.touched {
		now := t.row.countKey()
		gone := now.status == operation.StatusDeleted
		if t.isNew && gone {
			continue // the tables never see it
		}
		if t.isNew {
			p.counts[now]++
		} else if t.was != now {
			p.counts[t.was]--
			if !gone {
				p.counts[now]++
			}
		}
		if gone {
			b.Deleted = append(b.Deleted, t.row.Key())
			continue
		}
		b.Changes = append(b.Changes, Change{
			Row: &t.row, New: t.isNew, Was: t.was.status, Written: t.written, Request: t.request, First: t.first, History: t.history,
		})
	}
	for k, n := range p.counts {
		if n != 0 {
			b.Counts = append(b.Counts, Count{Organization: k.org, Type: k.kind, Status: k.status, Wait: k.wait, N: n})
		}
	}
}

// settle forgets what has ended and lets go of the payloads of what goes on.
func (p *Projector) settle() {
	for _, t := range p.touched {
		if t.absent || t.row.Status.Terminal() || p.live[t.ref] != t {
			p.release(t)
			continue
		}
		if t.row.Request.Raw != nil || t.row.Request.Data != nil {
			r := *t.row.Request // the event's is not ours to change
			r.Raw, r.Data = nil, nil
			t.row.Request = &r
		}
		t.touched, t.isNew, t.written, t.request, t.history = false, false, false, nil, nil
	}
	for _, t := range p.missing {
		// What was touched has been dealt with above, and is touched still if it was released.
		if !t.touched && (t.absent || t.row.Status.Terminal()) {
			p.release(t)
		}
	}
	for _, t := range p.live {
		if len(p.live) <= p.maxLive {
			break
		}
		p.release(t)
	}
	clear(p.found)
}

// maxFree bounds what is kept for later batches.
const maxFree = 8192

func (p *Projector) release(t *tracked) {
	if p.live[t.ref] == t {
		delete(p.live, t.ref)
	}
	if len(p.free) >= maxFree || cap(t.history) > 4096 {
		return
	}
	p.free = append(p.free, t)
}
