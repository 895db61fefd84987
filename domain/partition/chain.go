package partition

import (
	"slices"
	"sort"

	"github.com/opstream/opstream/domain/operation"
)

type chainKey struct{ org, token string }

// chain is the live part of a dependency token's chain.
type chain struct {
	key      chainKey
	holder   *op   // the one that may run
	waiting  []*op // the others, by sequence
	look     []*op // of waiting: those whose predecessor may be another one now
	settling bool
}

// before returns the live member that stands before waiting[i], or nil.
func (c *chain) before(i int) *op {
	if i > 0 {
		return c.waiting[i-1]
	}
	return c.holder
}

// tail returns the id behind which a new operation with this token waits, or "" when it need not wait.
func (e *Engine) tail(org, token string) operation.ID {
	if token == "" {
		return ""
	}
	if c := e.chains[chainKey{org, token}]; c != nil {
		if o := c.before(len(c.waiting)); o != nil {
			return o.state.ID
		}
	}
	return ""
}

// rejoin returns the id behind which a retried operation waits: it takes its old place among those that wait, and need not
// wait when nobody runs.
func (e *Engine) rejoin(org, token string, sequence operation.Place) operation.ID {
	if token == "" {
		return ""
	}
	if c := e.chains[chainKey{org, token}]; c != nil && c.holder != nil {
		return c.before(c.position(sequence)).state.ID
	}
	return ""
}

// ahead returns the id of the live operation that o stands behind in its chain, or "".
func (o *op) ahead() operation.ID {
	if c := o.chain; c != nil && c.holder != o {
		if i := c.index(o); i >= 0 {
			if b := c.before(i); b != nil {
				return b.state.ID
			}
		}
	}
	return ""
}

// position is the index in waiting of the first member whose sequence is at least the given one.
func (c *chain) position(sequence operation.Place) int {
	if n := len(c.waiting); n == 0 || c.waiting[n-1].state.RequestedPlace < sequence {
		return n
	}
	return sort.Search(len(c.waiting), func(i int) bool { return c.waiting[i].state.RequestedPlace >= sequence })
}

// index is where o stands in waiting, or -1.
func (c *chain) index(o *op) int {
	if i := c.position(o.state.RequestedPlace); i < len(c.waiting) && c.waiting[i] == o {
		return i
	}
	return -1
}

// link keeps o's chain in step with its state.
func (e *Engine) link(o *op) {
	s := &o.state
	if s.Request.DependencyToken == "" {
		return
	}
	behind := s.Status == operation.StatusWaiting && s.Holds&operation.HoldDependency != 0
	c := o.chain
	switch {
	case c == nil: // requested or retried
		key := chainKey{s.Org, s.Request.DependencyToken}
		if c = e.chains[key]; c == nil {
			c = &chain{key: key}
			e.chains[key] = c
		}
		o.chain = c
		if !behind {
			c.holder = o
			e.lookAt(c, 0)
			return
		}
		i := c.position(s.RequestedPlace)
		c.waiting = slices.Insert(c.waiting, i, o)
		if i < len(c.waiting)-1 {
			e.lookAt(c, i+1)
		}
	case s.Status.Terminal():
		o.chain = nil
		if c.holder == o {
			c.holder = nil
			if len(c.waiting) > 0 {
				e.settleLater(c)
			}
		} else if i := c.index(o); i >= 0 {
			c.remove(i)
			e.lookAt(c, i)
		}
		if c.holder == nil && len(c.waiting) == 0 {
			delete(e.chains, c.key)
		}
	case c.holder != o && !behind:
		if i := c.index(o); i >= 0 {
			c.remove(i)
		}
		c.holder = o
	}
}

func (c *chain) remove(i int) {
	if i == 0 {
		c.waiting[0] = nil
		c.waiting = c.waiting[1:]
		return
	}
	c.waiting = slices.Delete(c.waiting, i, i+1)
}

// blocked remembers for which operation, which has ended, o waits until a person acts, so that deleting that one can release
// o; was is what o waited for so before. (When that one is tried again it comes back right before o, where link looks.)
func (e *Engine) blocked(o *op, was operation.ID, wasBlocked bool) {
	s := &o.state
	if wasBlocked == s.Blocked && was == s.BlockedBy {
		return
	}
	if wasBlocked {
		up := Ref{s.Org, was}
		if rest := slices.DeleteFunc(e.tied[up], func(t *op) bool { return t == o }); len(rest) > 0 {
			e.tied[up] = rest
		} else {
			delete(e.tied, up)
		}
	}
	if s.Blocked {
		up := Ref{s.Org, s.BlockedBy}
		e.tied[up] = append(e.tied[up], o)
	}
}

// untie looks at the operations that are blocked by up.
func (e *Engine) untie(up Ref) {
	for _, o := range e.tied[up] {
		if c := o.chain; c != nil {
			c.look = append(c.look, o)
			e.settleLater(c)
		}
	}
}

// lookAt has waiting[i], if there is one, looked at.
func (e *Engine) lookAt(c *chain, i int) {
	if i < len(c.waiting) && !e.replaying {
		c.look = append(c.look, c.waiting[i])
		e.settleLater(c)
	}
}

// settleLater has the chain looked at. In replay that is for Recovered to do: the journal already has what followed.
func (e *Engine) settleLater(c *chain) {
	if !c.settling && !e.replaying {
		c.settling = true
		e.settling = append(e.settling, c)
	}
}

// settleChains lets the next operation of each chain that has changed go, block or end.
func (e *Engine) settleChains(cause operation.Cause, now operation.Time) {
	if e.inSettle || len(e.settling) == 0 {
		return // a step of this very function asks; the loop below goes on with what it left
	}
	e.inSettle = true
	for i := 0; i < len(e.settling); i++ { // it grows meanwhile
		c := e.settling[i]
		c.settling = false
		e.settleChain(c, cause, now)
	}
	clear(e.settling)
	if e.settling = e.settling[:0]; cap(e.settling) > keepMax {
		e.settling = nil
	}
	e.inSettle = false
}

func (e *Engine) settleChain(c *chain, cause operation.Cause, now operation.Time) {
	for {
		for i := 0; i < len(c.look); i++ { // it grows: one member after the other may be canceled because its upstream was
			if at := c.index(c.look[i]); at >= 0 {
				e.relink(c, at, cause, now)
			}
		}
		clear(c.look)
		c.look = c.look[:0]
		if c.holder != nil || len(c.waiting) == 0 {
			return
		}
		o := c.waiting[0]
		up := o.state.BlockedBy
		policy := o.state.Request.OnUpstreamFailure
		switch {
		case policy == operation.UpstreamRelease || e.endedWell(o):
			e.follow(operation.Release, o, up, nil, cause, now)
		case policy == operation.UpstreamCancel:
			e.follow(operation.Cancel, o, up, nil, cause, now)
		default:
			if !o.state.Blocked {
				e.follow(operation.Block, o, up, &operation.Failure{}, cause, now)
			}
			return
		}
	}
}

// relink gives waiting[i] its upstream anew when that one is not the member that stands before it.
func (e *Engine) relink(c *chain, i int, cause operation.Cause, now operation.Time) {
	o, before := c.waiting[i], c.before(i)
	if before == nil {
		return // the next to run: settleChain decides
	}
	up := o.state.BlockedBy
	policy := o.state.Request.OnUpstreamFailure
	live := e.ops[Ref{o.state.Org, up}]
	if live != nil && (live.chain != c || live != c.holder && live.state.RequestedPlace > o.state.RequestedPlace) {
		live = nil // another operation under an id that was forgotten
	}
	switch {
	case live != nil || policy == operation.UpstreamRelease || e.endedWell(o):
		// It ran well, failed and is tried again, or another one has come between.
		if before.state.ID != up || o.state.Blocked {
			e.follow(operation.Block, o, before.state.ID, nil, cause, now)
		}
	case policy == operation.UpstreamCancel:
		e.follow(operation.Cancel, o, up, nil, cause, now)
	case !o.state.Blocked:
		e.follow(operation.Block, o, up, &operation.Failure{}, cause, now)
	}
}

// endedWell says whether nothing keeps o back of an upstream that is not live: it succeeded or was deleted. When the
// partition has forgotten how it ended, that is so unless it is known to have blocked o.
func (e *Engine) endedWell(o *op) bool {
	k := e.known.find(hashID(kindOperation, o.state.Org, string(o.state.BlockedBy)))
	if k == nil {
		return !o.state.Blocked
	}
	return k.Status == operation.StatusSucceeded || k.Status == operation.StatusDeleted
}

func (e *Engine) follow(kind operation.CommandKind, o *op, up operation.ID, why *operation.Failure, cause operation.Cause, now operation.Time) {
	e.decide(&operation.Command{Kind: kind, Org: o.state.Org, ID: o.state.ID, Cause: cause, Upstream: up, Failure: why}, o, &o.state, now)
}
