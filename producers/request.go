package producers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
	"github.com/opstream/opstream/schemas"
)

// Context holds attributes of the CRM that an operation carries and opstream does not look at.
type Context = operation.Context

// RetryPolicy says how often and at what distance an operation is tried.
type RetryPolicy = retry.Policy

// DefaultRetry returns the policy of types that have no other, to begin one's own with.
func DefaultRetry() *RetryPolicy { return new(retry.Default) }

// Request asks for an operation. ID, Organization and Type must be given.
type Request struct {
	// ID names the operation and is the request's idempotency key: a request that is sent twice starts one operation if both
	// have the same id. So take it from what the operation is about (an outbox row, an event's id) or keep it with that.
	ID           string
	Organization string
	Type         string // stable name such as "bulk-delete", or a custom one
	Name         string // for people

	// DependencyToken makes the organization's operations with the same token run strictly one after another.
	DependencyToken   string
	OnUpstreamFailure string // what happens when the one before did not succeed: "release" (default), "block" or "cancel"
	PartitionKey      string // operations with the same key share a partition; default: the token, else the id

	Priority      *int8         // 0 (last) to 9 (first), e.g. new(int8(7)); default 4
	PostponeUntil time.Time     // not before; default at once
	TimeLimit     time.Duration // of one attempt; default the handler's
	Retry         *RetryPolicy  // see DefaultRetry; default the type's
	Context       *Context      // default none

	// Data is the handler's input: anything that encoding/json takes; a json.RawMessage goes as it is. Default none.
	Data any
}

// Target says where a command on this operation must go.
func (r *Request) Target() Target {
	return Target{Organization: r.Organization, ID: r.ID, DependencyToken: r.DependencyToken, PartitionKey: r.PartitionKey}
}

// command translates the request. What the schema says of the values is checked when it is encoded.
func (r *Request) command() (*operation.Command, string, error) {
	policy, ok := operation.ParseUpstreamPolicy(r.OnUpstreamFailure)
	if !ok {
		return nil, "", &Error{
			Code: schemas.UnknownValue, Field: "onUpstreamFailure",
			Reason: fmt.Sprintf("expected release, block or cancel, but got %q", r.OnUpstreamFailure),
		}
	}
	if r.ID == "" {
		return nil, "", &Error{
			Code: schemas.Required, Field: "id",
			Reason: "expected an id from the caller, because it is what makes sending the request twice harmless; take one that is the same at the next try",
		}
	}
	data, err := encodeData(r.Data)
	if err != nil {
		return nil, "", err
	}
	req := &operation.Request{
		ID: operation.ID(r.ID), Organization: r.Organization, Type: r.Type, Name: r.Name,
		DependencyToken: r.DependencyToken, OnUpstreamFailure: policy, ExplicitKey: r.PartitionKey,
		Priority: operation.PriorityDefault, PostponeUntil: operation.TimeOf(r.PostponeUntil), TimeLimit: r.TimeLimit,
		Retry: r.Retry, Context: r.Context, Data: data,
	}
	if r.Priority != nil {
		req.Priority = *r.Priority
	}
	return &operation.Command{Kind: operation.Submit, Org: req.Organization, ID: req.ID, Request: req}, req.Key(), nil
}

func encodeData(data any) ([]byte, error) {
	switch d := data.(type) {
	case nil:
		return nil, nil
	case json.RawMessage:
		// It is spliced into the request, and must not end its own member and begin others.
		if err := schemas.WellFormed(d); err != nil {
			return nil, &Error{Code: err.Code, Field: "data", Reason: err.Reason}
		}
		return d, nil
	}
	raw, err := json.Marshal(data)
	if err != nil {
		return nil, &Error{Code: schemas.MalformedJSON, Field: "data", Reason: "expected data that can be written as JSON", Err: err}
	}
	return raw, nil
}

// Request asks for an operation, and returns when the request is safe on the log.
func (c *Client) Request(ctx context.Context, r *Request) error {
	rec, err := c.requestRecord(r)
	if err != nil {
		return err
	}
	return c.sync(ctx, rec)
}

// RequestAsync asks for an operation and calls done once, with nil when the request is safe on the log. done is called from
// another goroutine, in the order of the calls within a partition, and must not block; when nothing was sent, it is called
// before RequestAsync returns. RequestAsync blocks while as much is under way as Config allows, and gives up when ctx ends.
func (c *Client) RequestAsync(ctx context.Context, r *Request, done func(error)) {
	rec, err := c.requestRecord(r)
	if err != nil {
		done(err)
		return
	}
	c.send(ctx, rec, func(_ Position, err error) { done(err) })
}

// RequestAll asks for many operations, in this order, and returns when all requests are settled or ctx ends. The error joins
// an *[ItemError] for each request that is not known to be safe; the others are.
func (c *Client) RequestAll(ctx context.Context, requests []*Request) error {
	var (
		mu      sync.Mutex
		failed  = make(map[int]error)
		settled = make([]bool, len(requests))
		left    sync.WaitGroup
	)
	left.Add(len(requests))
	for i, r := range requests {
		c.RequestAsync(ctx, r, func(err error) {
			mu.Lock()
			settled[i] = true
			if err != nil {
				failed[i] = err
			}
			mu.Unlock()
			left.Done()
		})
	}
	all := make(chan struct{})
	go func() {
		left.Wait()
		close(all)
	}()
	select {
	case <-all:
	case <-ctx.Done():
	}
	mu.Lock()
	defer mu.Unlock()
	var errs []error
	for i, r := range requests {
		err := failed[i]
		if !settled[i] {
			err = unsettled(ctx)
		}
		if err != nil {
			errs = append(errs, &ItemError{Index: i, ID: r.ID, Err: err})
		}
	}
	return errors.Join(errs...)
}

// ItemError is what became of one request of [Client.RequestAll].
type ItemError struct {
	Index int // among the requests
	ID    string
	Err   error // an *[Error]
}

func (e *ItemError) Error() string {
	return fmt.Sprintf("request %d (id %s): %v", e.Index, e.ID, e.Err)
}

func (e *ItemError) Unwrap() error { return e.Err }

func (c *Client) requestRecord(r *Request) (*kgo.Record, error) {
	cmd, key, err := r.command()
	if err != nil {
		return nil, err
	}
	return c.checked(cmd, key)
}
