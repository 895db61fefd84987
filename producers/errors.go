package producers

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/schemas"
)

// What to do about an [Error], for errors.Is.
var (
	// ErrRetry: nothing is wrong with the request; send it again, under the same id.
	ErrRetry = errors.New("send it again under the same id")
	// ErrGiveUp: the same request fails again; change what the error names.
	ErrGiveUp = errors.New("change what is named before sending it again")
	// ErrUnknown: the record was sent, and whether it is on the log is not known. It goes with ErrRetry.
	ErrUnknown = errors.New("the record may be on the log or not")
)

// Codes of an [Error] beside those of package schemas. They are stable.
const (
	CodeLogUnavailable operation.RejectionCode = "log_unavailable" // the log did not take the record
	CodeOutcomeUnknown operation.RejectionCode = "outcome_unknown" // see ErrUnknown
	CodeOverloaded     operation.RejectionCode = "overloaded"      // refused before it was sent
	CodeNotAllowed     operation.RejectionCode = "not_allowed"     // the log refuses this client
	CodeClosed         operation.RejectionCode = "closed"          // this client was closed
)

// Error says why a record is not known to be safe on the log, and what to do next.
type Error struct {
	Code       operation.RejectionCode
	Field      string // of the request, as it stands in JSON, when one is at fault
	Reason     string
	Retry      bool
	RetryAfter time.Duration // with Retry, when there is something to say about it
	Err        error         // what lies below, or nil
}

func (e *Error) Error() string {
	text := string(e.Code) + ": "
	if e.Field != "" {
		text += e.Field + ": "
	}
	text += e.Reason
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is answer what to do next.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrRetry:
		return e.Retry
	case ErrGiveUp:
		return !e.Retry
	case ErrUnknown:
		return e.Code == CodeOutcomeUnknown
	}
	return false
}

// refused turns what the encoder said of a message into an error: it is the caller's to mend.
func refused(err error) *Error {
	if r, ok := errors.AsType[*schemas.Refusal](err); ok {
		return &Error{Code: r.Code, Field: r.Field, Reason: r.Reason}
	}
	if d, ok := errors.AsType[*schemas.DecodeError](err); ok {
		return &Error{Code: d.Code, Field: d.Field, Reason: d.Reason}
	}
	return &Error{Code: schemas.InvalidRequest, Reason: "expected a request that can be written as JSON", Err: err}
}

// notSent is about a record that never went out.
func notSent(ctx context.Context, doing string) *Error {
	return &Error{
		Code: CodeOverloaded, Retry: true, RetryAfter: time.Second, Err: context.Cause(ctx),
		Reason: "expected " + doing + ", but the caller's time ended first; nothing was sent; send it again under the same id, later",
	}
}

// unsettled is about a record whose fate was not known when the caller's time ended.
func unsettled(ctx context.Context) *Error {
	return &Error{
		Code: CodeOutcomeUnknown, Retry: true, Err: context.Cause(ctx),
		Reason: "expected the broker to acknowledge the record, but the caller's time ended first; send it again under the same id: if it is on the log already, nothing happens twice",
	}
}

// delivery classifies what the Kafka client says of a record that it could not deliver. Unless the broker has said that it
// does not have the record, it may have it: an answer may have been lost, or the record may be on some replicas. And what the broker
// says is of the last try only, so it counts when there was no other.
func delivery(err error, once bool) *Error {
	last := lastTry(err)
	if !once && last.Code != CodeOutcomeUnknown {
		return &Error{
			Code: CodeOutcomeUnknown, Retry: true, RetryAfter: time.Second, Err: err,
			Reason: "the broker refused the record, but may have taken it when it was sent before: " + last.Reason + "; then send it again under the same id: if it is on the log already, nothing happens twice",
		}
	}
	return last
}

func lastTry(err error) *Error {
	switch {
	case errors.Is(err, kgo.ErrClientClosed):
		return &Error{
			Code: CodeOutcomeUnknown, Retry: true, Err: err,
			Reason: "the client was closed before the broker acknowledged the record; send it again under the same id with another client",
		}
	case errors.Is(err, kerr.MessageTooLarge), errors.Is(err, kerr.RecordListTooLarge):
		return &Error{Code: schemas.TooLarge, Reason: schemas.Reasons[schemas.TooLarge], Err: err}
	case errors.Is(err, kerr.UnknownTopicOrPartition):
		return &Error{
			Code: CodeLogUnavailable, Retry: true, RetryAfter: 5 * time.Second, Err: err,
			Reason: "expected the topic to exist, but the broker does not know it; create the topics, or correct their prefix, and send the record again under the same id",
		}
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed), errors.Is(err, kerr.SaslAuthenticationFailed):
		return &Error{Code: CodeNotAllowed, Reason: "the broker does not let this client write; grant it the right to write to the topic", Err: err}
	case errors.Is(err, kerr.InvalidRecord), errors.Is(err, kerr.PolicyViolation), errors.Is(err, kerr.InvalidTimestamp), errors.Is(err, kerr.UnsupportedForMessageFormat):
		return &Error{Code: CodeLogUnavailable, Reason: "the broker does not take records like this one; correct the topic's configuration", Err: err}
	}
	return &Error{
		Code: CodeOutcomeUnknown, Retry: true, RetryAfter: time.Second, Err: err,
		Reason: "the broker did not acknowledge the record in time; send it again under the same id: if it is on the log already, nothing happens twice",
	}
}
