package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/schemas"
)

// A Handler runs operations of one type. It is called from many goroutines at once.
//
// What it returns decides what becomes of the operation: nil is success, with the result as JSON; an error is a failed
// attempt, which is tried again as the retry policy says unless [Final], [Suspend], [YieldUntil], [YieldFor] or [Canceled]
// say otherwise. A panic is a failed attempt, too.
//
// The context ends with one of the causes [ErrCancelRequested], [ErrPauseRequested], [ErrTimeLimit], [ErrLeaseLost] and
// [ErrStopping]; the handler should then return soon. From there on only success and a yield are still heard: whatever else
// it returns is taken for the answer to the cause. After ErrLeaseLost nothing is heard: the attempt may already run elsewhere.
type Handler interface {
	Handle(ctx context.Context, op *Operation) (result any, err error)
}

// HandlerFunc is a function that is a Handler.
type HandlerFunc func(ctx context.Context, op *Operation) (result any, err error)

// Handle calls f.
func (f HandlerFunc) Handle(ctx context.Context, op *Operation) (any, error) { return f(ctx, op) }

// Operation is one attempt of an operation, as its handler sees it. Its fields are for reading.
type Operation struct {
	Organization string
	ID           operation.ID
	Type         string
	Name         string // for people; may be empty
	Attempt      operation.Attempt
	Failures     uint32          // attempts before this one that counted as failures
	Data         json.RawMessage // nil when the caller gave none
	Checkpoint   json.RawMessage // what the last attempt saved or yielded with; nil if none did

	// Request is the operation as it was accepted. It is shared: do not change it.
	Request *operation.Request

	reporter Reporter
}

// Reporter takes what a running handler reports. The worker brings its own; a handler's test may [Operation.Bind] one.
type Reporter interface {
	// Progress shows the JSON value to people. It does not wait.
	Progress(ctx context.Context, progress json.RawMessage) error
	// SaveCheckpoint returns when the JSON value is durable.
	SaveCheckpoint(ctx context.Context, checkpoint json.RawMessage) error
}

// Bind makes r receive what the handler reports. It is for tests of handlers: an Operation that is bound to nothing drops
// progress and remembers nothing but its last checkpoint, in Checkpoint.
func (o *Operation) Bind(r Reporter) { o.reporter = r }

// OperationKey names the operation: organization and id. Give it to an outside system that must do its part once however
// many attempts there are.
func (o *Operation) OperationKey() string {
	return keyOrganization(o.Organization) + "/" + string(o.ID)
}

// IdempotencyKey names this attempt: organization, id and attempt. Attempts only grow, so a system that refuses what is
// older than the newest that it has seen is safe from a process that was frozen, and wakes after its attempt was given up.
func (o *Operation) IdempotencyKey() string {
	return o.OperationKey() + "/" + strconv.FormatUint(uint64(o.Attempt), 10)
}

// keyOrganization keeps two organizations from sharing a key, should a name hold the separator.
func keyOrganization(name string) string {
	if strings.ContainsAny(name, "/%") {
		return url.PathEscape(name)
	}
	return name
}

// Decode reads Data into v and refuses members that v does not have. What cannot be decoded now never can, so the error is
// [Final], with the code invalid_data: a handler may return it as it is.
func (o *Operation) Decode(v any) error {
	if len(o.Data) == 0 {
		return invalidData(fmt.Errorf("expected data that fits %T, but the request has none", v))
	}
	d := json.NewDecoder(bytes.NewReader(o.Data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return invalidData(fmt.Errorf("expected data that fits %T, but: %w", v, err))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return invalidData(fmt.Errorf("expected one JSON value that fits %T, but more follows it at byte %d", v, d.InputOffset()))
	}
	return nil
}

func invalidData(err error) error { return Final(WithCode(err, CodeInvalidData, 0, "")) }

// Progress shows people how far the operation is. It never waits: what comes too often is merged, and the last one wins.
func (o *Operation) Progress(ctx context.Context, progress any) error {
	value, err := marshal(progress)
	if err != nil {
		return fmt.Errorf("progress of operation %s: %w", o.ID, err)
	}
	if o.reporter == nil || value == nil {
		return nil
	}
	return o.reporter.Progress(ctx, value)
}

// SaveCheckpoint keeps v for the next attempt, should this one not succeed: it will be its Checkpoint. When it returns nil
// the checkpoint is durable. It works also while the context has ended because of a cancel, a pause, a stop or the time limit.
func (o *Operation) SaveCheckpoint(ctx context.Context, v any) error {
	value, err := marshal(v)
	if err != nil {
		return fmt.Errorf("checkpoint of operation %s: %w", o.ID, err)
	}
	switch {
	case value == nil:
		return fmt.Errorf("expected a checkpoint of operation %s, but it is nil; use an empty object to start the next attempt from nothing", o.ID)
	case o.reporter == nil:
		o.Checkpoint = value
		return nil
	}
	return o.reporter.SaveCheckpoint(ctx, value)
}

// marshal makes JSON of v; nil stays nil. Raw JSON is taken as it is, if it is JSON that a report may hold: one that the
// scheduler cannot read would be no report at all, and the attempt would never end.
func marshal(v any) (json.RawMessage, error) {
	if v == nil {
		return nil, nil
	}
	value, isRaw := v.(json.RawMessage)
	if !isRaw {
		var err error
		if value, err = json.Marshal(v); err != nil {
			return nil, err
		}
	}
	if len(value) == 0 {
		return nil, nil
	}
	if len(value) > schemas.MaxBatchBytes {
		return value, nil // whatever it is, fits says that it is too large
	}
	if err := schemas.CheckJSON(value, len(value)); err != nil {
		return nil, fmt.Errorf("expected JSON that a report may hold, but: %w", err)
	}
	return value, nil
}
