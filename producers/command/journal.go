package command

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
)

// Journal puts commands on the log.
type Journal interface {
	// Do puts a command on the log, in the partition of key, and waits for the scheduler's answer.
	Do(ctx context.Context, cmd *operation.Command, key string) (Answer, error)
}

// Pipeline is a Journal that need not hear of one command before it takes the next. Batches use it when it is there: without
// it the lines of one partition key go one after another, each after the answer to the one before.
type Pipeline interface {
	Journal
	// Begin puts a command on the log, after all that were begun before it for the same key, and returns what waits for
	// the answer. It may block while too many are under way.
	Begin(ctx context.Context, cmd *operation.Command, key string) (wait func() (Answer, error))
}

// Answer is what the scheduler made of a command.
type Answer struct {
	Partition int32
	Place     operation.Place
	Rejection *operation.Rejection // nil when the command was accepted
	Field     string               // what the rejection is about, "" when it is about no field
	Unchanged bool                 // a repetition, or nothing to do
	Status    operation.Status     // of the operation, after the command
	Event     operation.EventKind  // what the command led to
}

// Position returns where in the journal the answer stands.
func (a *Answer) Position() api.Position { return api.Position{Partition: a.Partition, Place: a.Place} }

// The errors of a Journal that callers can do something about.
var (
	// ErrUnavailable says that the command is not on the log and will not be.
	ErrUnavailable = errors.New("the command could not be put on the log")
	// ErrNoRight goes with ErrUnavailable when it is so until somebody gives the service the right to write commands.
	ErrNoRight = errors.New("the brokers do not let this service write commands")
	// ErrOutcomeUnknown says that the command may be on the log, but nothing was heard of it. A context that ends while
	// Do waits means the same.
	ErrOutcomeUnknown = errors.New("the command was sent, but its answer was not heard")
)

// OverloadError says that the service takes no more now.
type OverloadError struct{ RetryAfter time.Duration }

func (e *OverloadError) Error() string {
	return fmt.Sprintf("expected room for another command, but the service is overloaded; try again in %s", e.RetryAfter)
}

// problemOf turns the error of a Journal into an answer.
func problemOf(err error) error {
	var overload *OverloadError
	switch {
	case errors.As(err, &overload):
		return overloaded(overload.RetryAfter)
	case errors.Is(err, ErrOutcomeUnknown), errors.Is(err, context.DeadlineExceeded):
		return api.NewProblem(api.OutcomeUnknown, "no answer was heard in time; the command may have taken effect or may still").Because(err)
	case errors.Is(err, ErrNoRight):
		return api.NewProblem(api.LogUnavailable, "the command is not on the log: the service has no right to write there; its principal needs those of the role api (opstream topics acls)").Because(err)
	case errors.Is(err, ErrUnavailable):
		return api.NewProblem(api.LogUnavailable, "the command is not on the log").Because(err)
	}
	return err
}

func overloaded(retryAfter time.Duration) *api.Problem {
	p := api.NewProblem(api.Overloaded, "the journal is behind with what it has taken already")
	p.RetryAfter = max(retryAfter, time.Second)
	return p
}

// rejected turns a rejection into an answer.
func rejected(a *Answer) *api.Problem {
	p := api.NewProblem(api.Code(a.Rejection.Code), "%s", a.Rejection.Reason).At(a.Field)
	p.Position = a.Position().String()
	return p
}

// Locator finds operations in the tables.
type Locator interface {
	// Locate returns the partition key of an operation, once the tables hold the given positions.
	Locate(ctx context.Context, org string, id operation.ID, after api.Positions) (key string, found bool, err error)
}

// Effects hears of effects through the tables.
type Effects interface {
	// Await returns the operation as soon as the tables hold the position and done says yes of the operation. When the
	// context ends first it returns the context's error, and the operation as it was last seen, if it was.
	Await(ctx context.Context, org string, id operation.ID, from api.Position, done func(*api.Operation) bool) (*api.Operation, error)
}
