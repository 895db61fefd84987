package partition

import "github.com/opstream/opstream/domain/operation"

// Outbox follows the committed events and knows, for each session, the oldest place that is still open with it. Engine
// cannot say that: it is ahead of the commits, and a session that is told too high a mark forgets what it must remember.
type Outbox struct {
	sessions map[operation.SessionID]*openPlaces
	attempts map[Ref]*openAttempt
	spare    *openAttempt // a list by newer of what can be used again
}

// openPlaces is a list of the attempts that are open with a session, by place.
type openPlaces struct{ oldest, newest *openAttempt }

type openAttempt struct {
	session      operation.SessionID
	place        operation.Place
	older, newer *openAttempt
}

// NewOutbox makes the outbox of a partition without open attempts.
func NewOutbox() *Outbox {
	return &Outbox{sessions: make(map[operation.SessionID]*openPlaces), attempts: make(map[Ref]*openAttempt)}
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
		s = &openPlaces{}
		b.sessions[session] = s
	}
	a := b.spare
	if a == nil {
		a = &openAttempt{}
	} else {
		b.spare = a.newer
	}
	*a = openAttempt{session: session, place: place, older: s.newest}
	if s.newest == nil {
		s.oldest = a
	} else {
		s.newest.newer = a
	}
	s.newest = a
	b.attempts[ref] = a
}

func (b *Outbox) close(ref Ref) {
	a := b.attempts[ref]
	if a == nil {
		return
	}
	delete(b.attempts, ref)
	s := b.sessions[a.session]
	if a.older == nil {
		s.oldest = a.newer
	} else {
		a.older.newer = a.newer
	}
	if a.newer == nil {
		s.newest = a.older
	} else {
		a.newer.older = a.older
	}
	if s.oldest == nil {
		delete(b.sessions, a.session)
	}
	*a = openAttempt{newer: b.spare}
	b.spare = a
}

// Len is the number of open attempts.
func (b *Outbox) Len() int { return len(b.attempts) }

// Open returns the place of the open attempt of an operation, if the journal holds one.
func (b *Outbox) Open(ref Ref) (operation.Place, bool) {
	if a := b.attempts[ref]; a != nil {
		return a.place, true
	}
	return 0, false
}

// Low returns the oldest place that is open with a session, or otherwise when none is.
func (b *Outbox) Low(session operation.SessionID, otherwise operation.Place) operation.Place {
	if s := b.sessions[session]; s != nil {
		return s.oldest.place
	}
	return otherwise
}
