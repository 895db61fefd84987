package api

import (
	"encoding/json"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/optype"
)

// The headers of the contract.
const (
	HeaderPosition       = "Opstream-Position"
	HeaderAsOf           = "Opstream-As-Of"
	HeaderLag            = "Opstream-Lag-Ms"
	HeaderIdempotencyKey = "Idempotency-Key"
)

// Standing is what an operation is, in opstream's word and in the original's names and numbers.
type Standing struct {
	Status       string `json:"status"`
	State        string `json:"state"`
	StateCode    int    `json:"stateCode"`
	StatusReason string `json:"statusReason"`
	StatusCode   int    `json:"statusCode"`
}

// StandingOf spells out a status.
func StandingOf(s operation.Status) Standing {
	state, reason := s.Labels()
	stateCode, statusCode := s.Codes()
	return Standing{Status: s.String(), State: state, StateCode: stateCode, StatusReason: reason, StatusCode: statusCode}
}

// Settled says whether nothing that a command asked for is still to take effect.
func (s Standing) Settled() bool {
	return s.Status != operation.StatusPausing.String() && s.Status != operation.StatusCanceling.String()
}

// Ended says whether the operation has ended.
func (s Standing) Ended() bool {
	status, ok := operation.ParseStatus(s.Status)
	return ok && status.Terminal()
}

// TypeCode returns the original's number for an operation type, 0 for those that are not the original's.
func TypeCode(name string) int {
	t, _ := optype.ByName(name)
	return t.Code
}

// Operation is an operation as the tables show it.
type Operation struct {
	Organization string `json:"organization"`
	ID           string `json:"id"`
	Type         string `json:"type"`
	TypeCode     int    `json:"typeCode,omitempty"`
	Name         string `json:"name,omitempty"`
	Standing
	Wait      string     `json:"wait,omitempty"` // why it does not run, as a word
	Why       string     `json:"why,omitempty"`  // and as a sentence
	Until     *time.Time `json:"until,omitempty"`
	BlockedBy string     `json:"blockedBy,omitempty"`

	DependencyToken string `json:"dependencyToken,omitempty"`
	PartitionKey    string `json:"partitionKey,omitempty"` // the whole key: organization, "/", and the part that decides
	Priority        int    `json:"priority"`
	CorrelationID   string `json:"correlationId,omitempty"`

	Attempt  uint32 `json:"attempt"`  // number of the last dispatch
	Failures uint32 `json:"failures"` // attempts that counted against the retry policy
	Session  string `json:"session,omitempty"`

	CreatedAt   time.Time  `json:"createdAt"`
	ModifiedAt  time.Time  `json:"modifiedAt"`
	StartedAt   *time.Time `json:"startedAt,omitempty"`
	CompletedAt *time.Time `json:"completedAt,omitempty"`

	By       *By      `json:"by,omitempty"` // the last operator command that changed it
	Failure  *Failure `json:"failure,omitempty"`
	Position string   `json:"position"` // of the last event that changed it
	Sequence int64    `json:"sequence"` // place of its request: the order within a dependency token

	// Not in lists.
	Request  json.RawMessage `json:"request,omitempty"` // as it was accepted
	Progress json.RawMessage `json:"progress,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
}

// By tells who gave a command, and why.
type By struct {
	Who    string `json:"who,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// Failure is why an attempt did not succeed.
type Failure struct {
	Code            string `json:"code,omitempty"`
	ErrorCode       int32  `json:"errorCode,omitempty"`
	Message         string `json:"message,omitempty"`
	FriendlyMessage string `json:"friendlyMessage,omitempty"`
	Class           string `json:"class,omitempty"`
	Fault           Fault  `json:"fault"`
}

// FailureOf spells out a failure. A lost lease is the service's doing, all else the handler's.
func FailureOf(f *operation.Failure) *Failure {
	if f == nil {
		return nil
	}
	fault := FaultHandler
	if f.Code == string(operation.LeaseLost) {
		fault = FaultService
	}
	return &Failure{Code: f.Code, ErrorCode: f.ErrorCode, Message: f.Message, FriendlyMessage: f.FriendlyMessage, Class: f.Class.String(), Fault: fault}
}

// Outcome answers a command.
type Outcome struct {
	Organization string `json:"organization"`
	ID           string `json:"id"`
	Standing
	Event     string     `json:"event"`     // what the command led to in the journal, as a word
	Unchanged bool       `json:"unchanged"` // the command was a repetition, or there was nothing to do
	Position  string     `json:"position"`
	Operation *Operation `json:"operation,omitempty"` // with Prefer: wait, the operation when the effect had settled
}

// CommandBody is what comes with a command on an operation.
type CommandBody struct {
	By     string          `json:"by,omitempty"`
	Reason string          `json:"reason,omitempty"`
	Until  string          `json:"until,omitempty"` // postpone: an RFC 3339 time
	Data   json.RawMessage `json:"data,omitempty"`  // retry: corrected input
}

// BatchLine answers one line of a batch, or ends it.
type BatchLine struct {
	Line         int      `json:"line,omitempty"` // from 1
	Accepted     bool     `json:"accepted"`
	Organization string   `json:"organization,omitempty"`
	ID           string   `json:"id,omitempty"`
	Status       string   `json:"status,omitempty"`
	Unchanged    bool     `json:"unchanged,omitempty"`
	Position     string   `json:"position,omitempty"`
	Problem      *Problem `json:"problem,omitempty"`

	// End is in the last line only. An answer without it was cut off.
	End *BatchEnd `json:"end,omitempty"`
}

// BatchEnd counts the lines of a batch.
type BatchEnd struct {
	Lines    int    `json:"lines"`
	Accepted int    `json:"accepted"`
	Refused  int    `json:"refused"`
	Position string `json:"position,omitempty"` // of everything that was accepted, to read after
}

// List is a page of operations.
type List struct {
	Operations []Operation `json:"operations"`
	Next       string      `json:"next,omitempty"` // cursor of the next page, absent on the last one
}

// HistoryEvent is one event of an operation.
type HistoryEvent struct {
	Position  string     `json:"position"`
	At        time.Time  `json:"at"`
	Event     string     `json:"event"`
	Attempt   uint32     `json:"attempt,omitempty"`
	Session   string     `json:"session,omitempty"`
	StartedAt *time.Time `json:"startedAt,omitempty"`
	Waits     []string   `json:"waits,omitempty"` // what it waits for from here on
	Until     *time.Time `json:"until,omitempty"`
	Upstream  string     `json:"upstream,omitempty"`
	By        *By        `json:"by,omitempty"`
	Failure   *Failure   `json:"failure,omitempty"`
	WaitsFor  string     `json:"waitsFor,omitempty"`

	Command string `json:"command,omitempty"` // of a rejection or a repetition
	Code    string `json:"code,omitempty"`
	Reason  string `json:"reason,omitempty"`

	CommandID string          `json:"commandId,omitempty"`
	Cause     *Cause          `json:"cause,omitempty"`
	Progress  json.RawMessage `json:"progress,omitempty"`
	Result    json.RawMessage `json:"result,omitempty"`
}

// Cause names the input that an event follows from.
type Cause struct {
	Topic  string `json:"topic"`
	Offset int64  `json:"offset"`
}

// History is a page of an operation's events, oldest first.
type History struct {
	Organization string         `json:"organization"`
	ID           string         `json:"id"`
	Events       []HistoryEvent `json:"events"`
	Next         string         `json:"next,omitempty"`
}

// Counts are numbers of operations by status and by type.
type Counts struct {
	Organization string        `json:"organization,omitempty"`
	Total        int64         `json:"total"`
	ByStatus     []StatusCount `json:"byStatus"`
	ByWait       []WaitCount   `json:"byWait"`
	ByType       []TypeCount   `json:"byType"`
}

// WaitCount is the number of operations that do not run for one reason.
type WaitCount struct {
	Wait  string `json:"wait"`
	Count int64  `json:"count"`
}

// StatusCount is the number of operations in one status.
type StatusCount struct {
	Standing
	Count int64 `json:"count"`
}

// TypeCount is the number of operations of one type, by status.
type TypeCount struct {
	Type     string           `json:"type"`
	TypeCode int              `json:"typeCode,omitempty"`
	Count    int64            `json:"count"`
	ByStatus map[string]int64 `json:"byStatus"`
}

// Status is what a process tells of itself.
type Status struct {
	Version string   `json:"version"`
	Roles   []string `json:"roles"`
	Ready   bool     `json:"ready"`
	Reason  string   `json:"reason,omitempty"` // why it is not ready
	LagMs   int64    `json:"lagMs"`
	AsOf    string   `json:"asOf"`

	Overloaded bool `json:"overloaded"`

	// Details are what the roles of the process tell beside that.
	Details map[string]any `json:"details,omitempty"`
}

// Change is one update of the event stream: an operation that has changed.
type Change struct {
	Organization string `json:"organization"`
	ID           string `json:"id"`
	Type         string `json:"type"`
	Standing
	Wait     string    `json:"wait,omitempty"`
	At       time.Time `json:"at"`
	Position string    `json:"position"`
}
