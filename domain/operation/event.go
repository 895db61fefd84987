package operation

// EventKind names an event.
type EventKind uint8

// The events. Each is complete in itself: a state after it follows from the state before it and the event alone.
const (
	Requested EventKind = iota
	Released
	Blocked
	BecameDue
	Dispatched
	Started
	Progressed
	Returned
	Succeeded
	AttemptFailed
	LeaseWasLost
	Failed
	Yielded
	PauseRequested
	Paused
	CancelRequested
	Canceled
	Resumed
	Postponed
	Retried
	Deleted

	// Answers: no operation changes, but somebody asked.
	Rejected
	Unchanged

	// Of the partition, not of one operation.
	Opened
	Forwarded
	eventKinds // their number
)

// EventKinds is the number of kinds of event.
const EventKinds = int(eventKinds)

var eventNames = [...]string{
	"requested", "released", "blocked", "due", "dispatched", "started", "progressed", "returned", "succeeded",
	"attempt-failed", "lease-lost", "failed", "yielded", "pause-requested", "paused", "cancel-requested", "canceled",
	"resumed", "postponed", "retried", "deleted", "rejected", "unchanged", "opened", "forwarded",
}

func (k EventKind) String() string { return eventNames[k] }

// Changes says whether the event changes an operation.
func (k EventKind) Changes() bool { return k <= Deleted }

// Event is something that has happened. Which fields count depends on Kind; package schemas has the table.
type Event struct {
	Kind  EventKind
	Org   string // organization
	ID    ID
	At    Time
	Cause Cause

	CommandID string // of the request that led here, "" if none did
	By        By

	Request *Request // Requested, Retried
	Holds   Holds    // Requested: what it waits for; AttemptFailed, Yielded, Paused, Postponed, Resumed, Retried: what it waits for now
	Until   Time     // with HoldPostponed or HoldRetry; PauseRequested: postponed until, after the pause

	Attempt   Attempt
	Session   SessionID
	StartedAt Time // Started
	Failure   *Failure
	Event     string // Yielded
	Progress  []byte
	Carry     []byte
	Result    []byte

	Upstream ID // Requested, Released, Blocked, Canceled by the chain

	Command CommandKind   // Rejected, Unchanged
	Code    RejectionCode // Rejected; Blocked: UpstreamFailed, or "" when it only waits behind another one now
	Reason  string        // Rejected; Returned
	Status  Status        // Unchanged: what the operation is

	Owner string // Opened: the writer's name
	To    int32  // Forwarded: partition
	Body  []byte // Forwarded: the command as it came
}
