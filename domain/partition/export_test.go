package partition

import (
	"fmt"
	"slices"

	"github.com/opstream/opstream/domain/operation"
)

// Check says what is wrong with the indexes of the engine, each of which follows from the states of the operations.
func (e *Engine) Check() error {
	if len(e.settling) > 0 || e.inSettle || e.replaying {
		return fmt.Errorf("between steps: %d chains to settle, inSettle %v, replaying %v", len(e.settling), e.inSettle, e.replaying)
	}
	ready, timed, open, members, blocked := 0, 0, 0, 0, 0
	var waits [operation.WaitServicePaused + 1]int
	for ref, o := range e.ops {
		s := &o.state
		if ref != (Ref{s.Org, s.ID}) || s.Status.Terminal() || s.Status == operation.StatusAbsent {
			return fmt.Errorf("%v is held as %v in status %v", ref, Ref{s.Org, s.ID}, s.Status)
		}
		if (s.Status == operation.StatusReady) != (o.ready != nil) || (o.at[inReady] > 0) != (o.ready != nil) {
			return fmt.Errorf("%v is %v, but its place in the queue is %v", ref, s.Status, o.at[inReady])
		}
		waits[s.Wait()]++
		if o.ready != nil {
			ready++
			if o.ready.entries[o.at[inReady]-1].o != o || o.ready.org != s.Org || e.queues[s.Request.Type] != o.queue {
				return fmt.Errorf("%v does not stand where it says in the queue", ref)
			}
		}
		if due := s.Status == operation.StatusWaiting && s.Holds&(operation.HoldPostponed|operation.HoldRetry) != 0; due != (o.at[inTimers] > 0) {
			return fmt.Errorf("%v is due at some time: %v, but its place among the timers is %v", ref, due, o.at[inTimers])
		}
		if i := o.at[inTimers]; i > 0 {
			timed++
			if n := e.timers.entries[i-1]; n.o != o || n.key != int64(s.Until) {
				return fmt.Errorf("%v does not stand where it says among the timers", ref)
			}
		} else if s.Until != 0 && s.Status != operation.StatusPausing {
			return fmt.Errorf("%v has a time, %v, but does not wait for it", ref, s.Until)
		}
		if s.Status.Locked() != (o.openAt > 0) {
			return fmt.Errorf("%v is %v, but its place with its session is %v", ref, s.Status, o.openAt)
		}
		if o.openAt > 0 {
			open++
			if e.sessions[s.Session].open[o.openAt-1] != o {
				return fmt.Errorf("%v does not stand where it says with its session", ref)
			}
		}
		if o.changed > 0 && e.changed[o.changed-1] != o {
			return fmt.Errorf("%v does not stand where it says among the changed ones", ref)
		}
		if s.Request.DependencyToken != "" {
			members++
			c := o.chain
			if c == nil || e.chains[chainKey{s.Org, s.Request.DependencyToken}] != c {
				return fmt.Errorf("%v is not in its chain", ref)
			}
			behind := s.Holds&operation.HoldDependency != 0
			if behind == (c.holder == o) || behind != (c.index(o) >= 0) {
				return fmt.Errorf("%v waits for its chain: %v, but is the holder: %v, waiting: %d", ref, behind, c.holder == o, c.index(o))
			}
			if behind && !s.Blocked && o.ahead() != s.BlockedBy {
				return fmt.Errorf("%v waits for %q, but stands behind %q", ref, s.BlockedBy, o.ahead())
			}
		}
		if s.Blocked {
			blocked++
			if !slices.Contains(e.tied[Ref{s.Org, s.BlockedBy}], o) {
				return fmt.Errorf("%v is blocked by %v, which does not know", ref, s.BlockedBy)
			}
		}
	}
	for why := operation.WaitNone + 1; why <= operation.WaitServicePaused; why++ {
		if e.Waiting(why) != waits[why] {
			return fmt.Errorf("%d operations wait for %q, but %d are noted", waits[why], why, e.Waiting(why))
		}
	}
	for _, q := range e.queues {
		sum := 0
		for p := range q.levels {
			l := &q.levels[p]
			n := 0
			for _, oq := range l.turn {
				n += len(oq.entries)
				if l.byOrg[oq.org] != oq {
					return fmt.Errorf("organization %s has a turn, but is not known", oq.org)
				}
			}
			if n != l.size || len(l.byOrg) != len(l.turn) || (n > 0) != (q.filled&(1<<p) != 0) {
				return fmt.Errorf("queue %s priority %d: counted %d and %d organizations, but noted %d and %d", q.name, p, n, len(l.turn), l.size, len(l.byOrg))
			}
			sum += n
		}
		if sum != q.size {
			return fmt.Errorf("queue %s: counted %d, but noted %d", q.name, sum, q.size)
		}
		ready -= sum
	}
	for _, s := range e.roster {
		open -= len(s.open)
	}
	for _, c := range e.chains {
		members -= len(c.waiting)
		if c.holder != nil {
			members--
		}
		if c.holder == nil && len(c.waiting) == 0 || len(c.look) > 0 {
			return fmt.Errorf("chain %v has nobody, or somebody to look at: %d", c.key, len(c.look))
		}
		if c.holder == nil && !c.waiting[0].state.Blocked {
			return fmt.Errorf("chain %v has no holder, and nothing blocks its first member", c.key)
		}
		if !slices.IsSortedFunc(c.waiting, func(a, b *op) int { return int(a.state.RequestedPlace - b.state.RequestedPlace) }) {
			return fmt.Errorf("chain %v is out of order", c.key)
		}
	}
	for _, ops := range e.tied {
		blocked -= len(ops)
	}
	if timed -= len(e.timers.entries); ready != 0 || timed != 0 || open != 0 || members != 0 || blocked != 0 {
		return fmt.Errorf("left over: ready %d, timers %d, open %d, chains %d, blocked %d", ready, timed, open, members, blocked)
	}
	bytes := 0
	for _, o := range e.ops {
		bytes += weight(&o.state)
	}
	for _, q := range e.queues {
		if q.bytes < q.size { // every request has a byte
			return fmt.Errorf("queue %s has %d operations of %d bytes", q.name, q.size, q.bytes)
		}
	}
	for _, q := range e.queues {
		if q.size == 0 && q.bytes != 0 {
			return fmt.Errorf("queue %s is empty and has %d bytes", q.name, q.bytes)
		}
	}
	if bytes != e.bytes {
		return fmt.Errorf("live operations have %d bytes, but %d are counted", bytes, e.bytes)
	}
	bytes = 0
	for _, f := range e.failed.byRef {
		bytes += weight(&f.state)
	}
	if bytes != e.failed.bytes || bytes > e.failed.maxBytes && len(e.failed.byRef) > 1 {
		return fmt.Errorf("failed operations have %d bytes of %d, but %d are counted", bytes, e.failed.maxBytes, e.failed.bytes)
	}
	for i, o := range e.changed {
		if o.changed != int32(i+1) || e.ops[Ref{o.state.Org, o.state.ID}] != o {
			return fmt.Errorf("changed[%d] is not live or elsewhere", i)
		}
	}
	if len(e.known.entries) > e.known.max || 2*len(e.known.entries) > len(e.known.table) || len(e.failed.byRef) > e.failed.max {
		return fmt.Errorf("the memory is too large: %d of %d, %d failed", len(e.known.entries), e.known.max, len(e.failed.byRef))
	}
	return nil
}
