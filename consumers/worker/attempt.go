package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
	"github.com/opstream/opstream/schemas"
)

// attempt is one item in the hands of a session, and its handler's Reporter.
type attempt struct {
	session *session
	at      spot
	op      Operation
	key     []byte // of the records that report it
	limit   time.Duration

	// What the handler returned, for the middleware outside of all. Only its own goroutine touches it.
	result json.RawMessage

	// The rest belongs to session.mu.
	state     state
	queuedAt  time.Time
	startedAt time.Time
	began     operation.Time // the same, as others are told it
	abandoned bool           // reported while its handler goes on
	cause     error
	cancel    context.CancelCauseFunc
	deadline  time.Time // by the time limit
	abandonAt time.Time // set when the deadline has passed: it is reported then, whether the handler has returned or not

	progress     json.RawMessage // not reported yet
	progressedAt time.Time       // when the last one was

	before, after *attempt // starts
	listed        bool
	due           time.Time // dues
	index         int
}

type state uint8

const (
	queued state = iota
	running
	ended // reported or forgotten; its handler may still run
)

// handlerContext is the context of a handler: it ends with the attempt's causes, and tells the time limit as its deadline.
type handlerContext struct {
	context.Context //nolint:containedctx // it is a context
	attempt         *attempt
	deadline        time.Time
}

type attemptKey struct{}

// Deadline is when the time limit is reached.
func (c *handlerContext) Deadline() (time.Time, bool) { return c.deadline, true }

// Value finds the attempt, for the worker's own middlewares.
func (c *handlerContext) Value(key any) any {
	if key == (attemptKey{}) {
		return c.attempt
	}
	return c.Context.Value(key)
}

// command begins a report of the attempt.
func (a *attempt) command(kind operation.CommandKind) operation.Command {
	return operation.Command{
		Kind: kind, Org: a.op.Organization, ID: a.op.ID, Attempt: a.op.Attempt, Session: a.session.id,
		StartedAt: a.began,
	}
}

// nextDue is when the agenda must look at a running attempt that stands in the heap.
func (a *attempt) nextDue() time.Time {
	due := a.deadline
	if !a.abandonAt.IsZero() {
		due = a.abandonAt
	}
	if a.progress != nil {
		if p := a.progressedAt.Add(progressEvery); p.Before(due) {
			due = p
		}
	}
	return due
}

// end decides what is reported when the handler has returned err, or is given up (err is then the cause). Success and a
// yield are what the handler wanted to say; anything else that it says after its context has ended is most likely the
// consequence of that, and is not taken for its judgement of the operation.
func (a *attempt) end(err error, cause error) operation.Command {
	if err == nil {
		c := a.command(operation.Succeed)
		c.Result = a.result
		return c
	}
	var yield *YieldError
	var canceled *CanceledError
	switch {
	case errors.As(err, &yield):
		return a.yield(yield, cause)
	case errors.Is(cause, ErrCancelRequested):
		c := a.command(operation.Stop)
		if errors.As(err, &canceled) && canceled.Err != nil {
			c.Failure = canceled.failure()
		}
		return c
	case errors.Is(cause, ErrPauseRequested):
		return a.command(operation.Yield)
	case errors.Is(cause, ErrStopping):
		return a.command(operation.Return)
	case errors.Is(cause, ErrTimeLimit):
		c := a.command(operation.Fail)
		c.Failure = &operation.Failure{
			Code: CodeTimeLimit, Class: retry.Again,
			Message: cut(fmt.Sprintf("the attempt ran for its time limit of %s; then: %v", a.limit, err), maxMessage),
		}
		return c
	case errors.As(err, &canceled):
		c := a.command(operation.Stop)
		if canceled.Err != nil {
			c.Failure = canceled.failure()
		}
		return c
	}
	c := a.command(operation.Fail)
	c.Failure = failureOf(err)
	return c
}

func (e *CanceledError) failure() *operation.Failure {
	f := failureOf(e.Err)
	if f.Code == CodeFailed {
		f.Code = CodeCanceled
	}
	return f
}

// yield reports a yield, or why it cannot be one.
func (a *attempt) yield(y *YieldError, cause error) operation.Command {
	carry, err := marshal(y.Checkpoint)
	if err == nil {
		err = fits("checkpoint", carry, schemas.MaxCheckpointBytes)
	} else {
		err = Final(WithCode(fmt.Errorf("expected a checkpoint that is JSON, but: %w", err), CodeInvalidResult, 0, ""))
	}
	if err != nil {
		c := a.command(operation.Fail)
		c.Failure = failureOf(err)
		return c
	}
	kind := operation.Yield
	if errors.Is(cause, ErrCancelRequested) {
		kind = operation.Stop
	}
	c := a.command(kind)
	c.Carry = carry
	if kind == operation.Yield {
		c.Event = y.Event
		c.Until = min(operation.TimeOf(y.Until), lastTime)
		if _, err := schemas.DecodeReport(schemas.EncodeReport(schemas.Topics{}, &c, nil)); err != nil {
			// The scheduler would refuse the report, and then the attempt would never end.
			c = a.command(operation.Fail)
			c.Failure = failureOf(Final(WithCode(fmt.Errorf("expected to yield for an event that a report can name, but: %w", err), CodeInvalidResult, 0, "")))
		}
	}
	return c
}

// lastTime is the last instant that the wire can tell.
var lastTime = operation.TimeOf(time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC))

// fits says whether a value can be reported.
func fits(what string, value json.RawMessage, limit int) error {
	if len(value) <= limit {
		return nil
	}
	return Final(WithCode(fmt.Errorf("expected a %s of at most %d bytes of JSON, but got %d; keep it elsewhere and report where", what, limit, len(value)), CodeResultTooLarge, 0, ""))
}

// call runs the handler and turns its result into JSON.
func (a *attempt) call(ctx context.Context, h Handler) error {
	result, err := h.Handle(ctx, &a.op)
	if err != nil {
		return err
	}
	value, err := marshal(result)
	if err != nil {
		return Final(WithCode(fmt.Errorf("expected a result that is JSON, but: %w", err), CodeInvalidResult, 0, ""))
	}
	if err := fits("result", value, schemas.MaxResultBytes); err != nil {
		return err
	}
	a.result = value
	return nil
}

// panicked is the failure of a handler that did not return; p is nil when it ended its goroutine (runtime.Goexit).
func panicked(p any) error {
	if p == nil {
		p = "the handler ended its goroutine"
	}
	return Retry(WithCode(fmt.Errorf("the handler panicked: %v\n%s", p, debug.Stack()), CodePanic, 0, ""))
}

// Progress implements Reporter.
func (a *attempt) Progress(_ context.Context, progress json.RawMessage) error {
	if err := fits("progress", progress, schemas.MaxProgressBytes); err != nil {
		return err
	}
	s := a.session
	now := time.Now()
	s.mu.Lock()
	if err := s.mayReport(a, now); err != nil {
		s.mu.Unlock()
		return err
	}
	if now.Sub(a.progressedAt) < progressEvery {
		a.progress = progress
		s.dues.set(a, a.nextDue())
		s.arm(a.due)
		s.mu.Unlock()
		return nil
	}
	a.progressedAt, a.progress = now, nil
	c := a.progressed(progress)
	s.mu.Unlock()
	s.send(&answer{session: s, at: a.at, key: a.key, command: c}, now)
	return nil
}

// progressed is the report of progress, which tells the start as well.
func (a *attempt) progressed(progress json.RawMessage) operation.Command {
	a.session.starts.remove(a)
	if a.index == 0 {
		a.session.dues.set(a, a.nextDue())
		a.session.arm(a.due)
	}
	c := a.command(operation.Progress)
	c.Progress = progress
	return c
}

// SaveCheckpoint implements Reporter.
func (a *attempt) SaveCheckpoint(ctx context.Context, checkpoint json.RawMessage) error {
	if err := fits("checkpoint", checkpoint, schemas.MaxCheckpointBytes); err != nil {
		return err
	}
	s := a.session
	now := time.Now()
	s.mu.Lock()
	if err := s.mayReport(a, now); err != nil {
		s.mu.Unlock()
		return err
	}
	c := a.progressed(a.progress)
	if a.progress != nil {
		a.progressedAt, a.progress = now, nil
	}
	c.Carry = checkpoint
	s.mu.Unlock()
	r := &answer{session: s, at: a.at, key: a.key, command: c, done: make(chan error, 1)}
	s.send(r, now)
	// A handler that was asked to stop saves what it has: only a context that ended for another reason ends the wait.
	wait := ctx.Done()
	for {
		select {
		case err := <-r.done:
			return err
		case <-s.overC:
			return ErrLeaseLost
		case <-wait:
			switch cause := context.Cause(ctx); {
			case errors.Is(cause, ErrLeaseLost):
				return ErrLeaseLost
			case errors.Is(cause, ErrCancelRequested), errors.Is(cause, ErrPauseRequested), errors.Is(cause, ErrStopping), errors.Is(cause, ErrTimeLimit):
				wait = nil
			default:
				return fmt.Errorf("the checkpoint of operation %s is on its way, but the wait for it ended: %w", a.op.ID, cause)
			}
		}
	}
}

// errEnded is the answer to a handler that reports after its attempt was reported without it.
var errEnded = errors.New("worker: the attempt has ended already; stop working on it")
