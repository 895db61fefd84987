package partition

import (
	"cmp"
	"slices"

	"github.com/opstream/opstream/domain/operation"
)

// Checkpoint is an engine's state as of a place of the journal, or what has changed of it since the checkpoint before.
type Checkpoint struct {
	Base   bool               // all of it, not a change
	Ops    []*operation.State // live, by sequence; good until the next step of the engine
	Gone   []Ref              // operations of earlier checkpoints that are not live, or cannot be retried, any more
	Known  []Known            // oldest first
	Failed []*operation.State // that can be retried, oldest first
	Pos    Positions
	Now    operation.Time
	End    operation.Place
}

// Checkpoint returns what is to be written, and takes it as written. Everything that was taken must have been committed.
func (e *Engine) Checkpoint(base bool) Checkpoint {
	cp := Checkpoint{Base: base, Pos: e.pos, Now: e.now, End: e.end}
	if base {
		e.knownSeq = 0
		cp.Ops = make([]*operation.State, 0, len(e.ops))
		for _, o := range e.ops {
			cp.Ops = append(cp.Ops, &o.state)
			o.changed, o.saved = 0, true
		}
	} else {
		for _, o := range e.changed {
			o.changed, o.saved = 0, true
			cp.Ops = append(cp.Ops, &o.state)
		}
		cp.Gone = e.gone
	}
	cp.Failed = e.failed.list(base)
	cp.Known = e.known.since(e.knownSeq)
	slices.SortFunc(cp.Ops, func(a, b *operation.State) int { return cmp.Compare(a.RequestedPlace, b.RequestedPlace) })
	clear(e.changed)
	if e.changed = e.changed[:0]; cap(e.changed) > keepMax {
		e.changed = nil
	}
	e.gone, e.knownSeq = nil, e.known.seq
	return cp
}

// Restore applies a base to a new engine, and then its increments in order.
func (e *Engine) Restore(cp *Checkpoint) {
	for _, ref := range cp.Gone {
		if o := e.ops[ref]; o != nil {
			e.bytes -= o.bytes
			delete(e.ops, ref)
		}
		e.failed.take(ref)
	}
	for _, s := range cp.Ops {
		ref := Ref{s.Org, s.ID}
		e.failed.take(ref)
		if old := e.ops[ref]; old != nil {
			e.bytes -= old.bytes
		}
		o := &op{state: *s, saved: true}
		e.weigh(o)
		e.ops[ref] = o
	}
	for _, k := range cp.Known {
		e.known.add(k)
	}
	for _, s := range cp.Failed {
		e.failed.add(Ref{s.Org, s.ID}, s)
	}
	e.pos, e.now, e.end = cp.Pos, cp.Now, cp.End
}

// Outbox returns the outbox of an engine whose events are all committed.
func (e *Engine) Outbox() *Outbox {
	b := NewOutbox()
	open := make([]*op, 0, 64)
	for _, s := range e.roster {
		open = append(open, s.open...)
	}
	slices.SortFunc(open, func(a, b *op) int { return cmp.Compare(a.state.DispatchedPlace, b.state.DispatchedPlace) })
	for _, o := range open {
		b.open(Ref{o.state.Org, o.state.ID}, o.state.Session, o.state.DispatchedPlace)
	}
	return b
}

// Restored builds what follows from the operations after the last Restore, before the first Replay.
func (e *Engine) Restored() {
	e.failed.list(true)
	e.knownSeq = e.known.seq
	all := make([]*op, 0, len(e.ops))
	for _, o := range e.ops {
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b *op) int { return cmp.Compare(a.state.RequestedPlace, b.state.RequestedPlace) })
	e.replaying = true
	for _, o := range all {
		if o.state.Status.Locked() {
			e.openAttempt(o, o.state.ModifiedAt)
		}
		if o.state.Status == operation.StatusReady {
			e.ready(o)
		}
		e.clock(o)
		e.recount(o)
		e.blocked(o, "", false)
		e.link(o)
	}
	e.replaying = false
}

// Recovered is called when the journal is read to its end: whatever a crash has cut off is looked at by the next Settle.
func (e *Engine) Recovered() {
	for _, c := range e.chains {
		c.look = append(c.look[:0], c.waiting...)
		e.settleLater(c)
	}
	slices.SortFunc(e.settling, func(a, b *chain) int {
		return cmp.Or(cmp.Compare(a.key.org, b.key.org), cmp.Compare(a.key.token, b.key.token))
	})
}
