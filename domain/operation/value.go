package operation

import (
	"math"
	"strconv"
	"time"

	"github.com/opstream/opstream/domain/retry"
)

// ID names an operation. The caller brings it: it is the idempotency key of the request.
type ID string

// SessionID names one life of a worker process.
type SessionID string

// Attempt numbers the dispatches of one operation, from 1.
type Attempt uint32

// Place is an offset in the partition's journal.
type Place int64

// Time is an instant in microseconds since 1970-01-01 UTC, which covers far more than the years 1 to 9999 that the wire
// allows. The zero value means "no time".
type Time int64

// TimeOf converts t, rounding down to microseconds.
func TimeOf(t time.Time) Time {
	if t.IsZero() {
		return 0
	}
	return Time(t.UnixMicro())
}

// Go converts t to a time.Time in UTC, the zero Time to the zero time.Time.
func (t Time) Go() time.Time {
	if t == 0 {
		return time.Time{}
	}
	return time.UnixMicro(int64(t)).UTC()
}

// Add returns t+d.
func (t Time) Add(d time.Duration) Time { return t + Time(d/time.Microsecond) }

// Sub returns t-u, or the longest duration there is if that is too long for one (some 292 years): operations may be
// postponed to the year 9999.
func (t Time) Sub(u Time) time.Duration {
	const most = Time(math.MaxInt64 / time.Microsecond)
	switch d := t - u; {
	case d > most:
		return math.MaxInt64
	case d < -most:
		return math.MinInt64
	default:
		return time.Duration(d) * time.Microsecond
	}
}

// Status is what an operation is, one value per row of the matrix.
type Status uint8

// The statuses. Dispatched and Running are both In Progress to the original; the difference is whether the handler is
// known to have started.
const (
	StatusAbsent Status = iota
	StatusReady
	StatusWaiting
	StatusDispatched
	StatusRunning
	StatusPausing
	StatusCanceling
	StatusSucceeded
	StatusFailed
	StatusCanceled
	StatusDeleted
	statuses // their number
)

var statusNames = [...]string{"absent", "ready", "waiting", "dispatched", "running", "pausing", "canceling", "succeeded", "failed", "canceled", "deleted"}

func (s Status) String() string { return nameOf(statusNames[:], int(s)) }

// nameOf also has a word for numbers that no value has: a table that somebody changed may hold any, and who compares it must be able
// to say so.
func nameOf(names []string, i int) string {
	if i >= len(names) {
		return "unknown " + strconv.Itoa(i)
	}
	return names[i]
}

// ParseStatus is the inverse of String.
func ParseStatus(name string) (Status, bool) {
	for s, n := range statusNames {
		if n == name {
			return Status(s), true
		}
	}
	return 0, false
}

// Codes returns the original's statecode and statuscode (spec section 3.1).
func (s Status) Codes() (statecode, statuscode int) {
	switch s {
	case StatusReady:
		return 0, 0
	case StatusWaiting:
		return 1, 10
	case StatusDispatched, StatusRunning:
		return 2, 20
	case StatusPausing:
		return 2, 21
	case StatusCanceling:
		return 2, 22
	case StatusSucceeded:
		return 3, 30
	case StatusFailed:
		return 3, 31
	case StatusCanceled:
		return 3, 32
	default:
		return -1, -1
	}
}

// Labels returns the original's names of the state and the status reason.
func (s Status) Labels() (state, reason string) {
	switch s {
	case StatusReady:
		return "Ready", "WaitingForResources"
	case StatusWaiting:
		return "Suspended", "Waiting"
	case StatusDispatched, StatusRunning:
		return "Locked", "InProgress"
	case StatusPausing:
		return "Locked", "Pausing"
	case StatusCanceling:
		return "Locked", "Canceling"
	case StatusSucceeded:
		return "Completed", "Succeeded"
	case StatusFailed:
		return "Completed", "Failed"
	case StatusCanceled:
		return "Completed", "Canceled"
	default:
		return s.String(), s.String()
	}
}

// Terminal says whether the operation has ended: Succeeded, Failed, Canceled or Deleted.
func (s Status) Terminal() bool { return s >= StatusSucceeded }

// Locked says whether an attempt is open: a session holds the operation.
func (s Status) Locked() bool { return s >= StatusDispatched && s <= StatusCanceling }

// Holds is the set of things that a waiting operation waits for.
type Holds uint8

// The holds. Postponed and Retry share the operation's Until; at most one of them is set.
const (
	HoldDependency Holds = 1 << iota // a predecessor in the token's chain has not ended, or has failed under policy block
	HoldPaused                       // a person paused it, or it waits for one to mend something
	HoldEvent                        // its handler yielded until something happens
	HoldPostponed                    // not before Until, because somebody said so
	HoldRetry                        // not before Until, because an attempt failed
)

// Wait is the reason why an operation does not run.
type Wait uint8

// The wait reasons of DESIGN section 2. Recurrence, Limit and ServicePaused are reserved for the rules of that name.
const (
	WaitNone Wait = iota
	WaitPaused
	WaitDependency
	WaitEvent
	WaitPostponed
	WaitRetry
	WaitResources
	WaitRecurrence
	WaitLimit
	WaitServicePaused
)

var waitNames = [...]string{"", "paused", "dependency", "event", "postponed", "retry", "resources", "recurrence", "limit", "service-paused"}

func (w Wait) String() string { return nameOf(waitNames[:], int(w)) }

// ParseWait is the inverse of String.
func ParseWait(name string) (Wait, bool) {
	for w, n := range waitNames {
		if n == name {
			return Wait(w), true
		}
	}
	return 0, false
}

// UpstreamPolicy says what becomes of an operation whose predecessor in the chain did not succeed (spec section 5.3).
type UpstreamPolicy uint8

// The policies; Release is the original's behaviour and the default.
const (
	UpstreamRelease UpstreamPolicy = iota
	UpstreamBlock
	UpstreamCancel
)

var upstreamNames = [...]string{"release", "block", "cancel"}

func (p UpstreamPolicy) String() string { return upstreamNames[p] }

// ParseUpstreamPolicy is the inverse of String; the empty name means release.
func ParseUpstreamPolicy(name string) (UpstreamPolicy, bool) {
	for p, n := range upstreamNames {
		if n == name {
			return UpstreamPolicy(p), true
		}
	}
	return 0, name == ""
}

// Priorities, in JMS's scale: 0 is the lowest, 9 the highest.
const (
	PriorityMin     = 0
	PriorityDefault = 4
	PriorityMax     = 9
)

// Request is what a caller asks for. It does not change after it was accepted, but for its Data in a corrected retry.
type Request struct {
	ID                ID
	Organization      string
	Type              string // stable name, package optype
	Name              string
	DependencyToken   string
	OnUpstreamFailure UpstreamPolicy
	ExplicitKey       string // partitionKey of the request
	Priority          int8
	PostponeUntil     Time
	TimeLimit         time.Duration // of one attempt; 0 means the worker's default
	Retry             *retry.Policy // nil means the type's default
	Context           *Context      // nil when the caller gave none of it
	Data              []byte        // JSON; nil when the caller gave none

	// Raw is the whole request as normalised JSON, byte for byte what the journal holds and what work items carry.
	// Data is a part of it. Two requests are the same when their Raw is.
	Raw []byte
}

// Context holds the attributes of the original (spec section 2.1) that opstream carries without looking at them.
type Context struct {
	CorrelationID, RequestID         string
	Depth                            int32
	MessageName, PrimaryEntityType   string
	RegardingType, RegardingID       string
	RegardingName                    string
	OwnerID, CallerOrigin, CreatedBy string
}

// Key is the partition key: organization, "/", and the first of explicit key, dependency token and id that is given.
func (r *Request) Key() string {
	return Key(r.Organization, r.ExplicitKey, r.DependencyToken, r.ID)
}

// Key builds the partition key of DESIGN section 2.
func Key(organization, explicitKey, dependencyToken string, id ID) string {
	switch {
	case explicitKey != "":
		return organization + "/" + explicitKey
	case dependencyToken != "":
		return organization + "/" + dependencyToken
	default:
		return organization + "/" + string(id)
	}
}

// Failure is why an attempt did not succeed.
type Failure struct {
	Code            string // stable, snake_case
	ErrorCode       int32  // the original's number (spec section 8.5), 0 if there is none
	Message         string // technical
	FriendlyMessage string // for people
	Class           retry.Class
}

// By says who gave an operator's command, and why. Both may be empty.
type By struct{ Who, Reason string }

// Cause names the input that an event follows from: a record of an input topic, or the clock.
type Cause struct {
	Topic  string // short name: requests, reports, signals, sessions; "clock" for a due time; "" for none
	Offset int64
}
