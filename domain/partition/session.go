package partition

import (
	"maps"
	"slices"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
)

// Heartbeat is what a worker session says of itself.
type Heartbeat struct {
	Session  operation.SessionID
	Pool     string
	Types    []string // that it serves, sorted
	Room     int      // attempts that it can hold: slots and a short queue
	Inbox    int32    // partition of the inboxes that it reads
	Lease    time.Duration
	Draining bool // takes nothing new
	Ended    bool // has stopped; what it did not give back is reported already or lost
}

// session is what the engine knows of a worker's session.
type session struct {
	id        operation.SessionID
	announced bool // a heartbeat was heard since the engine was made
	closed    bool // draining or ended
	types     []string
	room      int
	limit     int // this partition's part of the room, by use
	base      int // the least that limit shrinks to without give-backs
	inbox     int32
	lease     time.Duration
	deadline  operation.Time
	open      []*op // attempts that it holds
}

// servers are the sessions that serve a type, with the one whose turn it is.
type servers struct {
	sessions []*session
	at       int
}

// EndedGrace is how long the reports of a session that has said goodbye may take before its open attempts count as lost.
const EndedGrace = 2 * time.Second

// Tick tells the time of the clock by which leases are counted. That one only runs: unlike the wall clock, whose time events
// bear, nobody sets it. [Engine.Hear], [Engine.HeardThrough], [Engine.Missed], [Engine.Silent], [Engine.Grace] and [Engine.Overdue] are
// given its time, [Engine.NextLapse] tells it. Without Tick both clocks are taken for the same.
func (e *Engine) Tick(now operation.Time) { e.ticked = now }

// tick is the time of the leases' clock, wall that of the other one.
func (e *Engine) tick(wall operation.Time) operation.Time {
	if e.ticked != 0 {
		return e.ticked
	}
	return wall
}

// Hear takes a heartbeat. now is when it was read, so a slow reader only ever grants more time than was asked.
func (e *Engine) Hear(hb *Heartbeat, now operation.Time) {
	s := e.session(hb.Session)
	if !s.announced || !slices.Equal(s.types, hb.Types) || s.closed != (hb.Draining || hb.Ended) {
		s.types = slices.Clone(hb.Types)
		s.closed = hb.Draining || hb.Ended
		e.serve()
	}
	if room := max(hb.Room, 1); !s.announced || room != s.room {
		s.room = room
		s.base = max(1, room/e.cfg.Partitions)
		s.limit = s.base
	} else if s.limit > s.base && len(s.open) < s.limit/2 {
		s.limit = max(s.base, s.limit*3/4)
	}
	s.announced, s.inbox, s.lease = true, hb.Inbox, hb.Lease
	if s.lease <= 0 {
		s.lease = e.cfg.Lease
	}
	s.deadline = now.Add(s.lease)
	if hb.Ended {
		s.deadline = now.Add(min(EndedGrace, s.lease))
	}
}

func (e *Engine) session(id operation.SessionID) *session {
	s := e.sessions[id]
	if s == nil {
		s = &session{id: id}
		e.sessions[id] = s
		e.roster = append(e.roster, s)
	}
	return s
}

// serve makes the table of who serves what anew.
func (e *Engine) serve() {
	clear(e.serving)
	for _, s := range e.roster {
		if s.closed || len(s.types) == 0 {
			continue
		}
		for _, t := range s.types {
			v := e.serving[t]
			if v == nil {
				v = &servers{}
				e.serving[t] = v
			}
			v.sessions = append(v.sessions, s)
		}
	}
	e.types = slices.AppendSeq(e.types[:0], maps.Keys(e.serving))
	slices.Sort(e.types)
}

// Grace gives the sessions that hold attempts, but were not heard of yet, one lease from now: a scheduler that has just
// started knows nothing of their heartbeats.
func (e *Engine) Grace(now operation.Time) {
	for _, s := range e.roster {
		if s.announced {
			continue
		}
		s.deadline = now.Add(e.cfg.Lease)
		for _, o := range s.open {
			o.sentAt = 0 // whoever sent its item is gone, and may not have come to it
		}
	}
}

// openAttempt enters o with the session that it was dispatched to.
func (e *Engine) openAttempt(o *op, at operation.Time) {
	s := e.session(o.state.Session)
	if !s.announced && s.deadline == 0 {
		s.deadline = e.tick(at).Add(e.cfg.Lease)
	}
	s.open = append(s.open, o)
	o.openAt = int32(len(s.open))
	o.sentAt = e.tick(at)
}

// closeAttempt takes o from the session that held it.
func (e *Engine) closeAttempt(o *op, held operation.SessionID, why operation.EventKind) {
	s := e.sessions[held]
	if s == nil || o.openAt == 0 {
		return
	}
	switch {
	case why == operation.Returned || why == operation.LeaseWasLost:
	case len(s.open) == s.limit && s.limit < s.room:
		s.limit++ // it was used to the full and something came free: like a slow start, this doubles in one round trip
	}
	last := len(s.open) - 1
	s.open[o.openAt-1] = s.open[last]
	s.open[o.openAt-1].openAt = o.openAt
	s.open[last] = nil
	s.open = s.open[:last]
	o.openAt = 0
}

// overtaken is heard when the session gives an attempt back because it is busy: other partitions use the room as well.
func (s *session) overtaken() { s.limit = max(1, s.limit/2) }

// HeardThrough says that every heartbeat which the log held at t was given to Hear. Silence counts only up to there: a
// scheduler that was frozen, or reads late, must not take its own deafness for a worker's silence.
func (e *Engine) HeardThrough(t operation.Time) { e.heard = t }

// Missed says that the log has lost heartbeats, sent at t or before, which nobody has given to Hear. Each session may have sent
// the last of them, and is granted a lease from then on.
func (e *Engine) Missed(t operation.Time) {
	for _, s := range e.roster {
		lease := s.lease
		if lease == 0 { // not heard of yet
			lease = e.cfg.Lease
		}
		s.deadline = max(s.deadline, t.Add(lease))
	}
}

// Silent says whether a session's lease has run out by now without its silence being certain: the caller is to read the
// heartbeats up to the log's end as of now, and to say so with [Engine.HeardThrough].
func (e *Engine) Silent(now operation.Time) bool {
	for _, s := range e.roster {
		if s.deadline <= now && s.deadline > e.heard {
			return true
		}
	}
	return false
}

// expire gives up the attempts of sessions that are known to have been silent for longer than their lease.
func (e *Engine) expire(now operation.Time) {
	gone := false
	for _, s := range e.roster {
		if s.deadline > e.heard {
			continue
		}
		for len(s.open) > 0 {
			o := s.open[len(s.open)-1]
			e.decide(&operation.Command{
				Kind: operation.LoseLease, Org: o.state.Org, ID: o.state.ID, Cause: operation.Cause{Topic: "clock"},
				Attempt: o.state.Attempt, Session: s.id, Policy: e.policy(o),
			}, o, &o.state, now)
		}
		delete(e.sessions, s.id)
		gone = true
	}
	if gone {
		e.roster = slices.DeleteFunc(e.roster, func(s *session) bool { return e.sessions[s.id] != s })
		e.serve()
	}
}

func (e *Engine) policy(o *op) *retry.Policy { return e.cfg.Policy(o.state.Request.Type) }

// dispatch hands ready operations to sessions that have room: the highest priority first, among types in turns.
func (e *Engine) dispatch(cause operation.Cause, now operation.Time) {
	// Types that nobody serves may be as many as there are operations, and must not cost those that somebody does.
	e.asked = e.asked[:0]
	for _, t := range e.types {
		if q := e.queues[t]; q != nil && q.size > 0 {
			e.asked = append(e.asked, q)
		}
	}
	for len(e.asked) > 0 {
		best := 0
		for i, q := range e.asked[1:] {
			b := e.asked[best]
			if p, bp := q.top(), b.top(); p > bp || p == bp && q.served < b.served {
				best = i + 1
			}
		}
		q := e.asked[best]
		to := e.roomFor(q.name)
		if to != nil {
			e.served = q.served
			q.served++
			o := q.next()
			e.unready(o)
			e.decide(&operation.Command{Kind: operation.Dispatch, Org: o.state.Org, ID: o.state.ID, Cause: cause, Session: to.id}, o, &o.state, now)
		}
		if to == nil || q.size == 0 { // room does not come back in here
			last := len(e.asked) - 1
			e.asked[best] = e.asked[last]
			e.asked[last] = nil
			e.asked = e.asked[:last]
		}
	}
}

// roomFor returns the next session in turn that serves the type and has room, or nil.
func (e *Engine) roomFor(t string) *session {
	v := e.serving[t]
	if v == nil {
		return nil
	}
	for i := range v.sessions {
		s := v.sessions[(v.at+i)%len(v.sessions)]
		if len(s.open) < s.limit {
			v.at = (v.at + i + 1) % len(v.sessions)
			return s
		}
	}
	return nil
}

// Served says whether a living session serves the type.
func (e *Engine) Served(t string) bool { return e.serving[t] != nil }

// Inbox returns the partition of the inboxes that a session reads, and false when nothing was heard of it.
func (e *Engine) Inbox(id operation.SessionID) (int32, bool) {
	s := e.sessions[id]
	if s == nil || !s.announced {
		return 0, false
	}
	return s.inbox, true
}

// Overdue calls fn for each open attempt at a session that was heard of, of which nothing was heard for Config.ResendAfter
// or, when all is set, for each one: its item is to be offered again.
func (e *Engine) Overdue(now operation.Time, all bool, fn func(*operation.State)) {
	limit := now.Add(-e.cfg.ResendAfter)
	for _, s := range e.roster {
		if !s.announced {
			continue
		}
		for _, o := range s.open {
			if all || o.sentAt <= limit {
				o.sentAt = now
				fn(&o.state)
			}
		}
	}
}
