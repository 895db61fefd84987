package operation

// State is what an operation is: the fold of its events.
type State struct {
	Org       string // organization
	ID        ID
	Request   *Request
	Status    Status
	Holds     Holds
	Until     Time // with HoldPostponed or HoldRetry; while pausing: the postponement that follows
	BlockedBy ID   // with HoldDependency: the operation that it waits for
	Blocked   bool // with HoldDependency: that operation did not succeed and the policy is to wait for a person

	Attempt         Attempt   // number of the last dispatch, 0 before the first
	Failures        uint32    // attempts that counted against the policy
	Session         SessionID // of the open attempt, or of the last one
	DispatchedPlace Place     // of the last dispatch
	StartedAttempt  Attempt   // last attempt that is known to have started

	RequestedPlace Place // its sequence: token order is by this
	InputPlace     Place // of the event that holds the request as it is now: Requested, or the last Retried
	LastPlace      Place // of the last event that changed it

	CreatedAt, ModifiedAt, StartedAt, CompletedAt Time
	Since                                         Time // of acceptance or of the last retry by hand: the policy's give-up time counts from here

	WaitsFor string // with HoldEvent: what it yielded for
	Progress []byte // the last one reported
	Carry    []byte // checkpoint for the next attempt
	Result   []byte
	Failure  *Failure // of the last attempt that failed
	By       By       // of the last operator command that changed it
}

// Open says whether attempt a of session s is the open one.
func (s *State) Open(a Attempt, session SessionID) bool {
	return s.Status.Locked() && s.Attempt == a && s.Session == session
}

// Wait is the reason to show why the operation does not run; the strongest hold first.
func (s *State) Wait() Wait {
	switch {
	case s.Status == StatusReady:
		return WaitResources
	case s.Status != StatusWaiting:
		return WaitNone
	case s.Holds&HoldPaused != 0:
		return WaitPaused
	case s.Holds&HoldDependency != 0:
		return WaitDependency
	case s.Holds&HoldEvent != 0:
		return WaitEvent
	case s.Holds&HoldPostponed != 0:
		return WaitPostponed
	case s.Holds&HoldRetry != 0:
		return WaitRetry
	default:
		return WaitNone
	}
}

// Apply changes s by e, which stands at the given place. It is the only function that changes a state, in live work, in
// recovery and in projections; it trusts e, because only Decide makes events. Answers (Rejected, Unchanged) and events of
// the partition change nothing.
func (s *State) Apply(e *Event, place Place) {
	if !e.Kind.Changes() {
		return
	}
	s.ModifiedAt, s.LastPlace = e.At, place
	if e.By != (By{}) {
		s.By = e.By
	}
	switch e.Kind {
	case Requested:
		*s = State{
			Org: e.Org, ID: e.ID, Request: e.Request, BlockedBy: e.Upstream, Until: e.Until,
			RequestedPlace: place, InputPlace: place, LastPlace: place, CreatedAt: e.At, ModifiedAt: e.At, Since: e.At,
		}
		s.wait(e.Holds)
	case Released:
		s.BlockedBy, s.Blocked = "", false
		s.wait(s.Holds &^ HoldDependency)
	case Blocked:
		s.BlockedBy, s.Blocked = e.Upstream, e.Code != ""
	case BecameDue:
		s.Until = 0
		s.wait(s.Holds &^ (HoldPostponed | HoldRetry))
	case Dispatched:
		s.Status, s.Attempt, s.Session, s.DispatchedPlace = StatusDispatched, e.Attempt, e.Session, place
	case Started:
		if s.StartedAt == 0 {
			s.StartedAt = e.StartedAt
		}
		s.StartedAttempt = e.Attempt
		if s.Status == StatusDispatched {
			s.Status = StatusRunning
		}
	case Progressed:
		s.carry(e)
		if e.Progress != nil {
			s.Progress = e.Progress
		}
	case Returned:
		s.carry(e)
		s.wait(0)
	case Succeeded:
		s.Result, s.Failure = e.Result, nil
		s.end(StatusSucceeded, e.At)
	case AttemptFailed, LeaseWasLost:
		s.carry(e)
		s.Failures++
		s.Failure, s.Until = e.Failure, e.Until
		s.wait(e.Holds)
	case Failed:
		s.Failures++
		s.Failure = e.Failure
		s.end(StatusFailed, e.At)
	case Yielded, Paused:
		s.carry(e)
		s.Until, s.WaitsFor = e.Until, e.Event
		s.wait(e.Holds)
	case PauseRequested:
		s.Status, s.Until = StatusPausing, e.Until
	case CancelRequested:
		s.Status, s.Until = StatusCanceling, 0
	case Canceled:
		if e.Failure != nil {
			s.Failure = e.Failure
		}
		s.end(StatusCanceled, e.At)
	case Resumed, Postponed:
		s.Until = e.Until
		if e.Holds&HoldDependency == 0 {
			s.BlockedBy, s.Blocked = "", false
		}
		if e.Holds&HoldEvent == 0 {
			s.WaitsFor = ""
		}
		s.wait(e.Holds)
	case Retried:
		s.Request, s.InputPlace, s.BlockedBy = e.Request, place, e.Upstream
		s.Failures, s.CompletedAt, s.Since = 0, 0, e.At
		s.wait(e.Holds)
	case Deleted:
		s.Status = StatusDeleted
	}
}

// wait makes the operation wait for h, or ready when there is nothing to wait for.
func (s *State) wait(h Holds) {
	s.Holds = h
	if h == 0 {
		s.Status = StatusReady
	} else {
		s.Status = StatusWaiting
	}
}

func (s *State) carry(e *Event) {
	if e.Carry != nil {
		s.Carry = e.Carry
	}
}

func (s *State) end(to Status, at Time) {
	s.Status, s.CompletedAt = to, at
	s.Holds, s.Until, s.BlockedBy, s.Blocked, s.WaitsFor = 0, 0, "", false, ""
}
