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
	relink   bool  // a member that waited has ended, or one has come back: who waits for whom has to be looked at
	settling bool
	tiedTo   []Ref
}

// tail returns the id behind which a new operation with this token waits, or "" when it need not wait.
func (e *Engine) tail(org, token string) operation.ID {
	if token == "" {
		return ""
	}
	c := e.chains[chainKey{org, token}]
	switch {
	case c == nil:
		return ""
	case len(c.waiting) > 0:
		return c.waiting[len(c.waiting)-1].state.ID
	default:
		return c.holder.state.ID
	}
}

// rejoin returns the id behind which a retried operation waits: it takes its old place among those that wait, and need not
// wait when nobody runs.
func (e *Engine) rejoin(org, token string, sequence operation.Place) operation.ID {
	c := e.chains[chainKey{org, token}]
	if token == "" || c == nil || c.holder == nil {
		return ""
	}
	if i := c.position(sequence); i > 0 {
		return c.waiting[i-1].state.ID
	}
	return c.holder.state.ID
}

// position is the index in waiting of the first member whose sequence is at least the given one.
func (c *chain) position(sequence operation.Place) int {
	if n := len(c.waiting); n == 0 || c.waiting[n-1].state.RequestedPlace < sequence {
		return n
	}
	return sort.Search(len(c.waiting), func(i int) bool { return c.waiting[i].state.RequestedPlace >= sequence })
}

// link keeps o's chain in step with its state.
func (e *Engine) link(o *op, before operation.Status) {
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
		} else {
			c.waiting = slices.Insert(c.waiting, c.position(s.RequestedPlace), o)
		}
		c.relink = c.relink || before == operation.StatusFailed
		e.settleLater(c)
	case s.Status.Terminal():
		if c.holder == o {
			c.holder = nil
		} else {
			c.remove(o)
			c.relink = true
		}
		e.settleLater(c)
	case c.holder != o && !behind:
		c.remove(o)
		c.holder = o
	}
	if behind && s.Blocked {
		e.tie(Ref{s.Org, s.BlockedBy}, c)
	}
}

func (c *chain) remove(o *op) {
	i := c.position(o.state.RequestedPlace)
	if i < len(c.waiting) && c.waiting[i] == o {
		if i == 0 {
			c.waiting[0] = nil
			c.waiting = c.waiting[1:]
			return
		}
		c.waiting = slices.Delete(c.waiting, i, i+1)
	}
}

// tie remembers that a member of c is blocked by an operation that has ended, so that deleting that one can release it.
func (e *Engine) tie(up Ref, c *chain) {
	m := e.tied[up]
	if m == nil {
		m = make(map[*chain]struct{})
		e.tied[up] = m
	}
	if _, ok := m[c]; !ok {
		m[c] = struct{}{}
		c.tiedTo = append(c.tiedTo, up)
	}
}

func (e *Engine) untie(up Ref) {
	for c := range e.tied[up] {
		c.relink = true
		e.settleLater(c)
	}
	delete(e.tied, up)
}

func (e *Engine) settleLater(c *chain) {
	if !c.settling {
		c.settling = true
		e.settling = append(e.settling, c)
	}
}

// settleChains lets the next operation of each chain that has changed go, block or end.
func (e *Engine) settleChains(cause operation.Cause) {
	if e.inSettle {
		return // a step of this very function asks; the loop below goes on with what it left
	}
	e.inSettle = true
	for len(e.settling) > 0 {
		c := e.settling[0]
		e.settling[0] = nil
		e.settling = e.settling[1:]
		c.settling = false
		e.settleChain(c, cause)
	}
	e.settling = nil
	e.inSettle = false
}

func (e *Engine) settleChain(c *chain, cause operation.Cause) {
	for c.relink && e.relink(c, cause) {
		// one member after the other is canceled because its upstream was
	}
	for c.holder == nil && len(c.waiting) > 0 {
		o := c.waiting[0]
		up := o.state.BlockedBy
		policy := o.state.Request.OnUpstreamFailure
		switch {
		case policy == operation.UpstreamRelease || e.endedWell(o.state.Org, up):
			e.follow(operation.Release, o, up, nil, cause)
		case policy == operation.UpstreamCancel:
			e.follow(operation.Cancel, o, up, nil, cause)
		default:
			if !o.state.Blocked {
				e.follow(operation.Block, o, up, &operation.Failure{}, cause)
			}
			return
		}
	}
	if c.holder == nil && len(c.waiting) == 0 {
		delete(e.chains, c.key)
		for _, up := range c.tiedTo {
			if m := e.tied[up]; m != nil {
				delete(m, c)
				if len(m) == 0 {
					delete(e.tied, up)
				}
			}
		}
		c.tiedTo = nil
	}
}

// relink gives every member that waits for somebody who is no longer there its upstream anew. It returns true when it has
// to be called again, since a member was canceled.
func (e *Engine) relink(c *chain, cause operation.Cause) bool {
	c.relink = false
	for i, o := range c.waiting {
		up := o.state.BlockedBy
		if live := e.ops[Ref{o.state.Org, up}]; live != nil && live.chain == c {
			if o.state.Blocked { // it failed, and is tried again
				e.follow(operation.Block, o, up, nil, cause)
			}
			continue
		}
		before := c.holder
		if i > 0 {
			before = c.waiting[i-1]
		}
		if before == nil {
			continue // the next to run: settleChain decides
		}
		policy := o.state.Request.OnUpstreamFailure
		switch {
		case policy == operation.UpstreamRelease || e.endedWell(o.state.Org, up):
			e.follow(operation.Block, o, before.state.ID, nil, cause)
		case policy == operation.UpstreamCancel:
			e.follow(operation.Cancel, o, up, nil, cause)
			return true
		case !o.state.Blocked:
			e.follow(operation.Block, o, up, &operation.Failure{}, cause)
		}
	}
	return false
}

// endedWell says whether nothing keeps the successor of an operation that is not live back: it succeeded or was deleted,
// or it ended so long ago that nobody knows.
func (e *Engine) endedWell(org string, id operation.ID) bool {
	k := e.known.find(hashID(kindOperation, org, string(id)))
	return k == nil || k.Status == operation.StatusSucceeded || k.Status == operation.StatusDeleted
}

func (e *Engine) follow(kind operation.CommandKind, o *op, up operation.ID, why *operation.Failure, cause operation.Cause) {
	e.decide(&operation.Command{Kind: kind, Org: o.state.Org, ID: o.state.ID, Cause: cause, Upstream: up, Failure: why}, o, e.now)
}
