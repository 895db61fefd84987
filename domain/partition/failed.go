package partition

import "github.com/opstream/opstream/domain/operation"

// failedRing keeps the states of the last failed operations without their payload, so that they can be retried by hand. What a
// retry goes on from, the checkpoint, stays and may be large, so there is a bound to the bytes as well.
type failedRing struct {
	max, maxBytes  int
	bytes          int
	byRef          map[Ref]*failedOp
	oldest, newest *failedOp
}

type failedOp struct {
	ref          Ref
	state        operation.State
	saved        bool // a checkpoint holds it
	older, newer *failedOp
}

func newFailedRing(capacity, bytes int) failedRing {
	return failedRing{max: capacity, maxBytes: bytes, byRef: make(map[Ref]*failedOp)}
}

// add enters an operation that has failed; the caller makes room before.
func (r *failedRing) add(ref Ref, s *operation.State) {
	r.take(ref)
	f := &failedOp{ref: ref, state: kept(s), older: r.newest}
	r.bytes += weight(&f.state)
	if r.newest == nil {
		r.oldest = f
	} else {
		r.newest.newer = f
	}
	r.newest = f
	r.byRef[ref] = f
}

// kept is the part of a state that the ring keeps.
func kept(s *operation.State) operation.State {
	out := *s
	out.Request, out.Result, out.Progress = nil, nil, nil
	return out
}

// full returns the oldest one when there is no room for s, else nil. Alone, s has room however large it is.
func (r *failedRing) full(s *operation.State) *failedOp {
	next := kept(s)
	if len(r.byRef) < r.max && r.bytes+weight(&next) <= r.maxBytes {
		return nil
	}
	return r.oldest
}

func (r *failedRing) find(ref Ref) *operation.State {
	if f := r.byRef[ref]; f != nil {
		return &f.state
	}
	return nil
}

// take takes an operation out, or returns nil when it is not there.
func (r *failedRing) take(ref Ref) *failedOp {
	f := r.byRef[ref]
	if f == nil {
		return nil
	}
	delete(r.byRef, ref)
	r.bytes -= weight(&f.state)
	if f.older == nil {
		r.oldest = f.newer
	} else {
		f.older.newer = f.newer
	}
	if f.newer == nil {
		r.newest = f.older
	} else {
		f.newer.older = f.older
	}
	return f
}

// list returns the states, oldest first, and takes them as saved: all, or those that no checkpoint holds.
func (r *failedRing) list(all bool) []*operation.State {
	from := r.oldest
	if !all {
		from = nil
		for f := r.newest; f != nil && !f.saved; f = f.older {
			from = f
		}
	}
	var out []*operation.State
	for f := from; f != nil; f = f.newer {
		f.saved = true
		out = append(out, &f.state)
	}
	return out
}
