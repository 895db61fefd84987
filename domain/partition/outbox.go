package partition

import "github.com/opstream/opstream/domain/operation"

// Outbox follows the committed events and knows, for each session, the oldest place that is still open with it. Engine
// cannot say that: it is ahead of the commits, and a session that is told too high a mark forgets what it must remember.
type Outbox struct {
	sessions map[operation.SessionID]*openPlaces
	attempts map[Ref]openAttempt
}

type openAttempt struct {
	session operation.SessionID
	place   operation.Place
}

// openPlaces are the places dispatched to a session, ascending, from the oldest open one on.
type openPlaces struct {
	places []operation.Place
	closed map[operation.Place]struct{} // of places, those that are not at the front and closed already
}

// NewOutbox makes the outbox of a partition without open attempts.
func NewOutbox() *Outbox {
	return &Outbox{sessions: make(map[operation.SessionID]*openPlaces), attempts: make(map[Ref]openAttempt)}
}

// Commit takes an event that the journal holds at place.
func (b *Outbox) Commit(ev *operation.Event, place operation.Place) {
	switch ev.Kind {
	case operation.Dispatched:
		b.open(Ref{ev.Org, ev.ID}, ev.Session, place)
	case operation.Returned, operation.Succeeded, operation.AttemptFailed, operation.LeaseWasLost, operation.Failed,
		operation.Yielded, operation.Paused, operation.Canceled:
		b.close(Ref{ev.Org, ev.ID})
	}
}

func (b *Outbox) open(ref Ref, session operation.SessionID, place operation.Place) {
	s := b.sessions[session]
	if s == nil {
		s = &openPlaces{closed: make(map[operation.Place]struct{})}
		b.sessions[session] = s
	}
	s.places = append(s.places, place)
	b.attempts[ref] = openAttempt{session, place}
}

func (b *Outbox) close(ref Ref) {
	a, ok := b.attempts[ref]
	if !ok {
		return
	}
	delete(b.attempts, ref)
	s := b.sessions[a.session]
	s.closed[a.place] = struct{}{}
	for len(s.places) > 0 {
		if _, ok := s.closed[s.places[0]]; !ok {
			break
		}
		delete(s.closed, s.places[0])
		s.places = s.places[1:]
	}
	if len(s.places) == 0 {
		delete(b.sessions, a.session)
	}
}

// Open returns the place of the open attempt of an operation, if the journal holds one.
func (b *Outbox) Open(ref Ref) (operation.Place, bool) {
	a, ok := b.attempts[ref]
	return a.place, ok
}

// Low returns the oldest place that is open with a session, or otherwise when none is.
func (b *Outbox) Low(session operation.SessionID, otherwise operation.Place) operation.Place {
	if s := b.sessions[session]; s != nil {
		return s.places[0]
	}
	return otherwise
}
