package worker

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/opstream/opstream/consumers/kafka"
)

// Names of the metadata of the messages that middlewares see.
const (
	MetadataOrganization  = "organization"
	MetadataOperationID   = "operation_id"
	MetadataAttempt       = "attempt"
	MetadataCorrelationID = kafka.MetadataCorrelationID // of the request's context, else the operation's id
)

// routes leads attempts into the router: it is its Subscriber, with the operation types for topics. Router and routes
// live as long as the Worker runs, over many sessions.
type routes map[string]*route

type route struct {
	mu       sync.RWMutex // held for reading while emitting, so that close waits
	closed   bool
	messages chan *message.Message
}

var _ message.Subscriber = routes(nil)

// Subscribe returns the channel of an operation type.
func (r routes) Subscribe(_ context.Context, topic string) (<-chan *message.Message, error) {
	route := r[topic]
	if route == nil {
		return nil, errors.New("worker: expected the type of a handler, but got " + strconv.Quote(topic))
	}
	return route.messages, nil
}

// Close ends all subscriptions. The router calls it once for each handler.
func (r routes) Close() error {
	for _, route := range r {
		route.mu.Lock()
		if !route.closed {
			route.closed = true
			close(route.messages)
		}
		route.mu.Unlock()
	}
	return nil
}

// emit gives an attempt to its handler. The router's loop takes it at once and runs it on a goroutine of its own.
func (r routes) emit(ctx context.Context, a *attempt) {
	op := &a.op
	correlation := string(op.ID)
	if c := op.Request.Context; c != nil && c.CorrelationID != "" {
		correlation = c.CorrelationID
	}
	msg := message.NewMessage(op.IdempotencyKey(), message.Payload(op.Data))
	msg.Metadata[MetadataOrganization] = op.Organization
	msg.Metadata[MetadataOperationID] = string(op.ID)
	msg.Metadata[MetadataAttempt] = strconv.FormatUint(uint64(op.Attempt), 10)
	msg.Metadata[MetadataCorrelationID] = correlation
	msg.SetContext(ctx)
	route := r[op.Type]
	route.mu.RLock()
	defer route.mu.RUnlock()
	if !route.closed { // else the session is over, and a forgotten already
		route.messages <- msg
	}
}

// closeTimeout is for the router's own goroutines: when it is closed, handlers were waited for already.
const closeTimeout = 100 * time.Millisecond

// newRouter builds the chain: ours outside of all, which hears the end whatever happens inside; the correlation id for logs
// and outgoing requests; what the team adds; the handler.
func (w *Worker) newRouter() (*message.Router, routes, error) {
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: closeTimeout}, routerLog{w.log})
	if err != nil {
		return nil, nil, err
	}
	router.AddMiddleware(outermost, kafka.Correlation)
	router.AddMiddleware(w.cfg.Middleware...)
	r := make(routes, len(w.cfg.Handlers))
	for name, handler := range w.cfg.Handlers {
		r[name] = &route{messages: make(chan *message.Message)}
		router.AddConsumerHandler(name, name, r, func(msg *message.Message) error {
			ctx := msg.Context()
			a, _ := ctx.Value(attemptKey{}).(*attempt)
			if a == nil {
				return errNoAttempt
			}
			return a.call(ctx, handler)
		})
	}
	return router, r, nil
}

var errNoAttempt = errors.New("worker: expected the message's context to come from the worker's, but a middleware has replaced it; derive it from msg.Context()")

// outermost ends the attempt, whichever way the handler ended. The router never hears of failures: to it, a message that
// was reported is a message that is done.
func outermost(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		a, _ := msg.Context().Value(attemptKey{}).(*attempt)
		var err error
		returned := false
		defer func() {
			if !returned {
				err = panicked(recover())
			}
			a.session.finish(a, err)
		}()
		if a.session.mayBegin(a) {
			_, err = next(msg)
		}
		returned = true
		return nil, nil
	}
}

// routerLog passes on what the router finds wrong, and nothing of what it does for every message.
type routerLog struct{ log *slog.Logger }

func (l routerLog) Error(msg string, err error, fields watermill.LogFields) {
	l.log.Error("router: "+msg, "err", err, "fields", map[string]any(fields))
}
func (routerLog) Info(string, watermill.LogFields)                   {}
func (routerLog) Debug(string, watermill.LogFields)                  {}
func (routerLog) Trace(string, watermill.LogFields)                  {}
func (l routerLog) With(watermill.LogFields) watermill.LoggerAdapter { return l }
