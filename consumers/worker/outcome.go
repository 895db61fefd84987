package worker

import (
	"errors"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
)

// The causes with which a handler's context ends. Ask context.Cause.
var (
	// ErrCancelRequested means that somebody canceled the operation. Returning ends it.
	ErrCancelRequested = errors.New("worker: the operation is to be canceled")
	// ErrPauseRequested means that somebody paused or postponed the operation. Return soon, best with YieldFor("", checkpoint).
	ErrPauseRequested = errors.New("worker: the operation is to pause")
	// ErrTimeLimit means that the attempt has run for as long as it may. It counts as a failure, and is tried again.
	ErrTimeLimit = errors.New("worker: the attempt has reached its time limit")
	// ErrLeaseLost means that the worker could not reach the log for so long that the attempt may already run elsewhere.
	// Touch nothing more.
	ErrLeaseLost = errors.New("worker: the lease of the session is lost")
	// ErrStopping means that the process ends. The attempt is given back and burns no attempt of the policy.
	ErrStopping = errors.New("worker: the worker is stopping")
)

// The codes of failures that this package itself reports.
const (
	CodeFailed         = "failed"           // a plain error without a code
	CodePanic          = "panic"            // the handler panicked; the message holds the stack
	CodeTimeLimit      = "time_limit"       // the attempt ran longer than it may
	CodeInvalidData    = "invalid_data"     // Decode: the data does not fit what the handler expects
	CodeInvalidResult  = "invalid_result"   // the result or checkpoint is not JSON
	CodeResultTooLarge = "result_too_large" // the result or checkpoint does not fit into a record
	CodeCanceled       = "canceled"         // Canceled with an error that has no code
)

// Error is a handler's error with its meaning. [Final], [Suspend], [Retry] and [WithCode] make it; they may be nested, and
// what stands outside wins.
type Error struct {
	Err       error
	Class     retry.Class // Unknown: another Error inside says it, or ErrorCode, or the default
	Code      string      // stable, snake_case
	ErrorCode int32       // the original's number, 0 if there is none
	Friendly  string      // for people
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the error that has the meaning.
func (e *Error) Unwrap() error { return e.Err }

// Final means that trying again is of no use: the operation fails. Final(nil) is nil.
func Final(err error) error { return classed(err, retry.Fail) }

// Suspend means that a person must mend something first, and then resumes the operation. Suspend(nil) is nil.
func Suspend(err error) error { return classed(err, retry.Suspend) }

// Retry means that the next attempt may succeed: the operation waits as its retry policy says. A plain error means the
// same; Retry says it in spite of an error code that means something else. Retry(nil) is nil.
func Retry(err error) error { return classed(err, retry.Again) }

func classed(err error, class retry.Class) error {
	if err == nil {
		return nil
	}
	return &Error{Err: err, Class: class}
}

// WithCode gives err a stable code, the original's error number and a sentence for people; each may be empty. A number
// without Final, Suspend or Retry leaves the class to the original's table (package retry), which fails what it does not
// list. WithCode(nil, …) is nil.
func WithCode(err error, code string, errorCode int32, friendly string) error {
	if err == nil {
		return nil
	}
	return &Error{Err: err, Code: code, ErrorCode: errorCode, Friendly: friendly}
}

// YieldError ends an attempt without success or failure: the operation waits, and another attempt goes on from the
// checkpoint. [YieldUntil] and [YieldFor] make it.
type YieldError struct {
	Until      time.Time // zero: not by time
	Event      string    // empty: for no event
	Checkpoint any       // JSON; nil keeps the last one
}

func (e *YieldError) Error() string {
	switch {
	case e.Event != "":
		return "worker: the handler yields for event " + e.Event
	case !e.Until.IsZero():
		return "worker: the handler yields until " + e.Until.UTC().Format(time.RFC3339)
	}
	return "worker: the handler yields"
}

// YieldUntil ends the attempt; the next one begins at t or later, with the checkpoint.
func YieldUntil(t time.Time, checkpoint any) error {
	return &YieldError{Until: t, Checkpoint: checkpoint}
}

// YieldFor ends the attempt; the next one begins when the named event is told to the operation, with the checkpoint. Without
// an event it begins when the operation's turn comes again, or, after ErrPauseRequested, when the pause ends.
func YieldFor(event string, checkpoint any) error {
	return &YieldError{Event: event, Checkpoint: checkpoint}
}

// CanceledError ends the operation as canceled. [Canceled] makes it.
type CanceledError struct{ Err error } // Err says why; it may be nil

func (e *CanceledError) Error() string {
	if e.Err == nil {
		return "worker: the handler cancels the operation"
	}
	return "worker: the handler cancels the operation: " + e.Err.Error()
}

// Unwrap returns the reason.
func (e *CanceledError) Unwrap() error { return e.Err }

// Canceled ends the operation as canceled, because of err if it is not nil. Unlike Final(nil), Canceled(nil) is an error.
func Canceled(err error) error { return &CanceledError{err} }

// maxMessage bounds what a failure tells, in bytes. The original keeps 100 000 characters; a record of the log travels to
// every reader, so ours is shorter.
const maxMessage = 16 << 10

// failureOf says what a handler's error means: class and texts of the outermost that has any.
func failureOf(err error) *operation.Failure {
	f := &operation.Failure{Message: cut(err.Error(), maxMessage)}
	var e *Error
	for at := err; errors.As(at, &e); at = e.Err {
		if f.Class == retry.Unknown {
			f.Class = e.Class
		}
		if f.Code == "" {
			f.Code = e.Code
		}
		if f.ErrorCode == 0 {
			f.ErrorCode = e.ErrorCode
		}
		if f.FriendlyMessage == "" {
			f.FriendlyMessage = cut(e.Friendly, maxMessage)
		}
	}
	if f.Class == retry.Unknown && f.ErrorCode == 0 {
		f.Class = retry.Again
	}
	if f.Code == "" {
		f.Code = CodeFailed
	}
	return f
}

// cut shortens s to at most n bytes, between two characters.
func cut(s string, n int) string {
	const more = " … (cut)"
	if len(s) <= n {
		return s
	}
	end := n - len(more)
	for end > 0 && s[end]&0xC0 == 0x80 {
		end--
	}
	return s[:end] + more
}
