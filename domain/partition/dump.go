package partition

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/opstream/opstream/domain/operation"
)

// Dump writes down all of the engine that is a function of the journal, the same text for the same state: what two engines
// that have applied the same events must agree on. What is known of sessions and whose turn it is are not in it. It is for
// tests and for people.
func (e *Engine) Dump() string {
	var b strings.Builder
	fmt.Fprintf(&b, "end %d now %d positions %+v live %d\n", e.end, e.now, e.pos, len(e.ops))
	all := make([]*op, 0, len(e.ops))
	for _, o := range e.ops {
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b *op) int { return cmp.Compare(a.state.RequestedPlace, b.state.RequestedPlace) })
	for _, o := range all {
		fmt.Fprintf(&b, "operation %s", dumpState(&o.state))
		if o.ready != nil {
			b.WriteString(" queued")
		}
		if i := o.at[inTimers]; i > 0 {
			fmt.Fprintf(&b, " due %d", e.timers.entries[i-1].key)
		}
		if o.openAt > 0 {
			b.WriteString(" open")
		}
		b.WriteByte('\n')
	}
	keys := make([]chainKey, 0, len(e.chains))
	for key := range e.chains {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b chainKey) int { return cmp.Or(cmp.Compare(a.org, b.org), cmp.Compare(a.token, b.token)) })
	for _, key := range keys {
		c := e.chains[key]
		fmt.Fprintf(&b, "chain %s/%s:", key.org, key.token)
		if c.holder != nil {
			fmt.Fprintf(&b, " held by %s", c.holder.state.ID)
		}
		for _, o := range c.waiting {
			fmt.Fprintf(&b, " %s", o.state.ID)
		}
		b.WriteByte('\n')
	}
	blocking := make([]Ref, 0, len(e.tied))
	for up := range e.tied {
		blocking = append(blocking, up)
	}
	slices.SortFunc(blocking, func(a, b Ref) int { return cmp.Or(cmp.Compare(a.Org, b.Org), cmp.Compare(a.ID, b.ID)) })
	for _, up := range blocking {
		var ids []string
		for _, o := range e.tied[up] {
			ids = append(ids, string(o.state.ID))
		}
		slices.Sort(ids)
		fmt.Fprintf(&b, "blocking %s/%s: %v\n", up.Org, up.ID, ids)
	}
	for f := e.failed.oldest; f != nil; f = f.newer {
		fmt.Fprintf(&b, "failed %s\n", dumpState(&f.state))
	}
	for _, k := range e.known.since(0) {
		fmt.Fprintf(&b, "known %x %x %s\n", k.Hash, k.Body, k.Status)
	}
	return b.String()
}

// dumpState spells out what s points to.
func dumpState(s *operation.State) string {
	flat, failure, raw := *s, operation.Failure{}, ""
	if s.Failure != nil {
		failure = *s.Failure
	}
	if s.Request != nil {
		raw = string(s.Request.Raw)
	}
	flat.Failure, flat.Request = nil, nil
	return fmt.Sprintf("%+v request %s failure %+v", flat, raw, failure)
}
