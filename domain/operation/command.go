package operation

import "github.com/opstream/opstream/domain/retry"

// CommandKind names a command, one per column of the matrix.
type CommandKind uint8

// The commands: first what callers and operators ask (topic requests), then what workers report (topic reports), then what
// the partition engine finds out.
const (
	Submit CommandKind = iota
	Cancel
	Pause
	Resume
	Postpone
	Retry
	Delete

	Start
	Progress
	Succeed
	Fail
	Yield
	Stop // the handler ended because it was asked to, or because it wants the operation canceled
	Return

	Dispatch
	Release
	Block
	Due
	LoseLease
	commands // their number
)

var commandNames = [...]string{
	"submit", "cancel", "pause", "resume", "postpone", "retry", "delete",
	"start", "progress", "succeed", "fail", "yield", "stop", "return",
	"dispatch", "release", "block", "due", "lose-lease",
}

func (k CommandKind) String() string { return commandNames[k] }

// Report says whether a worker gives the command, for an attempt of its own.
func (k CommandKind) Report() bool { return k >= Start && k <= Return }

// Request says whether a caller or operator gives the command and waits for its answer.
func (k CommandKind) Request() bool { return k <= Delete }

// Command asks an operation to do something. Which fields count depends on Kind.
type Command struct {
	Kind  CommandKind
	Org   string // organization
	ID    ID
	Cause Cause

	CommandID string   // requests: the id under which a second copy is recognised
	By        By       // requests other than Submit
	Request   *Request // Submit; Retry: the operation as it was accepted, corrected if the caller asked for that
	Until     Time     // Postpone; Yield: not before (0: not by time)
	Data      []byte   // Retry: corrected input, JSON; nil keeps the old one

	Attempt   Attempt   // reports, Dispatch, LoseLease
	Session   SessionID // reports, Dispatch, LoseLease
	StartedAt Time      // reports: when the handler began, 0 if it did not
	Failure   *Failure  // Fail; Stop may carry one
	Event     string    // Yield: name of what it waits for
	Progress  []byte    // Progress: JSON for people
	Carry     []byte    // Progress, Yield, Stop, Return: checkpoint, JSON, given to the next attempt
	Result    []byte    // Succeed: JSON

	// Upstream is the predecessor in the chain. Submit, Retry, Release, Cancel by the chain; Block, with a Failure when the
	// predecessor did not succeed; Resume, when there is one that is live.
	Upstream ID

	// Policy is the retry policy of the operation's type; the request's own comes first. Fail, LoseLease.
	Policy *retry.Policy
}

// RejectionCode is a stable reason for a refusal.
type RejectionCode string

// The codes of this package. Codes of the border (invalid_request …) are in package schemas.
const (
	NotFound         RejectionCode = "not_found"
	KeyReused        RejectionCode = "key_reused"
	AlreadyDone      RejectionCode = "already_done"
	NotReady         RejectionCode = "not_ready"
	NotLocked        RejectionCode = "not_locked"
	StaleAttempt     RejectionCode = "stale_attempt"
	LeaseLost        RejectionCode = "lease_lost"
	NotSuspended     RejectionCode = "not_suspended"
	WaitsForUpstream RejectionCode = "waits_for_upstream"
	IsCanceling      RejectionCode = "canceling"
	InvalidTime      RejectionCode = "invalid_time"
	NotFailed        RejectionCode = "not_failed"
	NotCompleted     RejectionCode = "not_completed"
	PlatformJob      RejectionCode = "platform_job"
	Forgotten        RejectionCode = "forgotten"
	WasDeleted       RejectionCode = "deleted"
	Overloaded       RejectionCode = "overloaded"

	// UpstreamFailed is not a refusal but the reason in a Blocked event.
	UpstreamFailed RejectionCode = "upstream_failed"
)

// Reasons holds one sentence for each rejection code, for people; it says what to do next.
var Reasons = map[RejectionCode]string{
	NotFound:         "there is no such operation; check the organization and the id, or wait until it was accepted",
	KeyReused:        "another request was accepted under this id; use a new id for different work",
	AlreadyDone:      "the operation has ended; submit a new one",
	NotReady:         "only a ready operation can be dispatched; do not run it",
	NotLocked:        "no attempt of the operation is open; stop working on it",
	StaleAttempt:     "the report is for an attempt or session that is not the current one; stop working on it",
	LeaseLost:        "the session had been silent for longer than its lease and the attempt was given up; stop working on it",
	NotSuspended:     "only a suspended operation can be resumed; there is nothing to do for one that is not",
	WaitsForUpstream: "an earlier operation with the same dependency token has not ended; wait for it or cancel it",
	IsCanceling:      "the operation is being canceled; wait for its end",
	InvalidTime:      "expected a time in the future; resume the operation to run it at once",
	NotFailed:        "only a failed operation can be retried; wait for the end of one that has not ended, and submit a new one for one that has",
	NotCompleted:     "only a completed operation can be deleted; cancel it first",
	PlatformJob:      "jobs of this type belong to the platform and cannot be canceled, paused or resumed; wait for its end",
	Forgotten:        "the operation ended too long ago to be retried; submit a new one",
	Overloaded:       "the partition has as many operations that have not ended as it can hold; send the request again, under the same id, when some have",
	WasDeleted:       "the operation was deleted; submit a new one under a new id",
}

// Rejection is the answer "no". It is journaled; it is not an error.
type Rejection struct {
	Code   RejectionCode
	Reason string
}

func (r *Rejection) Error() string { return string(r.Code) + ": " + r.Reason }

func reject(code RejectionCode) *Rejection { return &Rejection{code, Reasons[code]} }
