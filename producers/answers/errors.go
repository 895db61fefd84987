package answers

import (
	"errors"
	"fmt"
	"time"

	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/producers/command"
)

// Unheard says that a command was sent and its answer was not heard. It is command.ErrOutcomeUnknown and producers.ErrRetry.
type Unheard struct {
	Topic     string // where the command was sent
	Partition int32
	Offset    int64 // where it is safe, or -1 when that was not heard either; then it is producers.ErrUnknown
	Reason    string
	Err       error // what lies below, or nil
}

func (e *Unheard) Error() string {
	text := fmt.Sprintf("the command was sent to %s, partition %d, and whether it got there is not known: %s; send it again under the same id: nothing happens twice", e.Topic, e.Partition, e.Reason)
	if e.Offset >= 0 {
		text = fmt.Sprintf("the command is safe on %s, partition %d, offset %d, but its answer was not heard: %s; look for the event with the cause requests/%d in the same partition of the journal, read the operation, or send the command again under the same id: nothing happens twice", e.Topic, e.Partition, e.Offset, e.Reason, e.Offset)
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

func (e *Unheard) Unwrap() error { return e.Err }

// Is makes errors.Is answer what is known and what to do next.
func (e *Unheard) Is(target error) bool {
	switch target {
	case command.ErrOutcomeUnknown, producers.ErrRetry:
		return true
	case producers.ErrUnknown:
		return e.Offset < 0
	}
	return false
}

// overloaded refuses a command before it is sent.
func overloaded(retryAfter time.Duration, format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), &refusal{command.OverloadError{RetryAfter: retryAfter}})
}

// refusal is a command.OverloadError that also answers for package producers.
type refusal struct{ command.OverloadError }

func (e *refusal) Is(target error) bool { return target == producers.ErrRetry }
func (e *refusal) Unwrap() error        { return &e.OverloadError }

// undelivered turns the producer's error into one of package command.
func (p *partition) undelivered(err error) error {
	fault, ok := errors.AsType[*producers.Error](err)
	switch {
	case errors.Is(err, producers.ErrUnknown):
		return &Unheard{Topic: p.requests, Partition: p.number, Offset: -1, Reason: "the broker did not acknowledge it", Err: err}
	case ok && fault.Code == producers.CodeOverloaded:
		return fmt.Errorf("%w: %w", err, &command.OverloadError{RetryAfter: fault.RetryAfter})
	}
	if ok && fault.Code == producers.CodeNotAllowed {
		return fmt.Errorf("%w: %w: %s: %w", command.ErrUnavailable, command.ErrNoRight, p.requests, err)
	}
	return fmt.Errorf("%w: %w", command.ErrUnavailable, err)
}
