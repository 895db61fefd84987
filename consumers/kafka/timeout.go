package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// A TimeLimitError is the cause with which Timeout ends a handler's context, and the error of a handler that gave up for it.
type TimeLimitError struct{ Limit time.Duration }

// Error tells the limit.
func (e *TimeLimitError) Error() string {
	return fmt.Sprintf("kafka: the handler ran longer than its limit of %s", e.Limit)
}

// Is makes a TimeLimitError equal to context.DeadlineExceeded for errors.Is.
func (e *TimeLimitError) Is(target error) bool { return target == context.DeadlineExceeded }

// Timeout is a middleware that ends the handler's context after limit, with a *TimeLimitError as its cause; a stop has the cause
// of the message's own context (ErrRevoked, ErrClosed) instead. A handler that returns an error for the limit returns a
// *TimeLimitError to the middlewares outside, with the handler's error wrapped beside it.
//
// Watermill's Timeout leaves the ended context on the message: a Retry outside it then starts with a dead context, and messages
// that the handler made with that context cannot be published. Here the message gets its context back, and produced messages
// keep the values of theirs without its end. The handler is not abandoned: a handler that ignores its context runs on.
func Timeout(limit time.Duration) message.HandlerMiddleware {
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			outer := msg.Context()
			defer msg.SetContext(outer)
			ended := &TimeLimitError{Limit: limit}
			ctx, cancel := context.WithTimeoutCause(outer, limit, ended)
			defer cancel()
			msg.SetContext(ctx)
			produced, err := next(msg)
			for _, p := range produced {
				if p != msg {
					p.SetContext(context.WithoutCancel(p.Context()))
				}
			}
			if err != nil && context.Cause(ctx) == error(ended) && !errors.As(err, new(*TimeLimitError)) { //nolint:errorlint // this limit, and not one around it
				err = fmt.Errorf("%w: %w", ended, err)
			}
			return produced, err
		}
	}
}
