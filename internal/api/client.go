package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Client speaks to an opstream API. The zero value of HTTP means http.DefaultClient. What the service answers with a problem
// is returned as a *Problem.
type Client struct {
	Base string // of the service, such as http://localhost:8080
	HTTP *http.Client
}

// Call holds what any call may ask for; the zero value asks for nothing.
type Call struct {
	After string        // reads, and commands that the tables locate: positions to wait for
	Wait  time.Duration // reads: for the positions; commands: for the effect
	Key   string        // commands: the id under which a second copy is recognised
}

func (c Call) header() http.Header {
	h := http.Header{}
	if c.Wait > 0 {
		h.Set("Prefer", "wait="+strconv.Itoa(int((c.Wait+time.Second-1)/time.Second)))
	}
	if c.Key != "" {
		h.Set(HeaderIdempotencyKey, c.Key)
	}
	return h
}

func (c Call) query() url.Values {
	q := url.Values{}
	if c.After != "" {
		q.Set("after", c.After)
	}
	return q
}

// Submit submits one request, the data of an event opstream.operation.requested.v1.
func (c *Client) Submit(ctx context.Context, request []byte, call Call) (*Outcome, error) {
	h := call.header()
	h.Set("Content-Type", "application/json")
	out := new(Outcome)
	return out, c.do(ctx, http.MethodPost, "/v1/operations", nil, h, bytes.NewReader(request), out)
}

// Batch submits the requests that lines holds, one on each line, and calls f with the answer to each while it sends. It
// returns what the service counted at the end; an answer without an end is an error.
func (c *Client) Batch(ctx context.Context, lines io.Reader, f func(BatchLine) error) (BatchEnd, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // so that the sending ends when f does not go on
	h := http.Header{"Content-Type": {"application/jsonl"}}
	resp, err := c.send(ctx, http.MethodPost, "/v1/operations:batch", nil, h, lines)
	if err != nil {
		return BatchEnd{}, err
	}
	defer resp.Body.Close()
	decoder := json.NewDecoder(resp.Body)
	for {
		var line BatchLine
		if err := decoder.Decode(&line); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return BatchEnd{}, fmt.Errorf("the answer was cut off; send what was not answered again, under the same ids: %w", err)
		}
		switch {
		case line.End != nil:
			return *line.End, nil
		case line.Line == 0 && line.Problem != nil:
			return BatchEnd{}, line.Problem
		}
		if err := f(line); err != nil {
			return BatchEnd{}, err
		}
	}
}

// Get returns an operation.
func (c *Client) Get(ctx context.Context, org, id string, call Call) (*Operation, error) {
	out := new(Operation)
	return out, c.do(ctx, http.MethodGet, operationPath(org, id), call.query(), call.header(), nil, out)
}

// History yields the events of an operation, oldest first.
func (c *Client) History(ctx context.Context, org, id string, call Call) iter.Seq2[HistoryEvent, error] {
	return func(yield func(HistoryEvent, error) bool) {
		q := call.query()
		for {
			var page History
			if err := c.do(ctx, http.MethodGet, operationPath(org, id)+"/history", q, call.header(), nil, &page); err != nil {
				yield(HistoryEvent{}, err)
				return
			}
			for _, e := range page.Events {
				if !yield(e, nil) {
					return
				}
			}
			if page.Next == "" {
				return
			}
			q.Set("cursor", page.Next)
		}
	}
}

// List yields the operations of a list, page by page. The filter's names are the query parameters of the contract.
func (c *Client) List(ctx context.Context, filter url.Values, call Call) iter.Seq2[Operation, error] {
	return func(yield func(Operation, error) bool) {
		q := call.query()
		for name, values := range filter {
			q[name] = values
		}
		for {
			var page List
			if err := c.do(ctx, http.MethodGet, "/v1/operations", q, call.header(), nil, &page); err != nil {
				yield(Operation{}, err)
				return
			}
			for _, o := range page.Operations {
				if !yield(o, nil) {
					return
				}
			}
			if page.Next == "" {
				return
			}
			q.Set("cursor", page.Next)
		}
	}
}

// Command gives a command on an operation: cancel, pause, resume, postpone, retry or delete. The target's partitionKey or
// dependencyToken, when known, makes it independent of the tables.
func (c *Client) Command(ctx context.Context, name, org, id string, body CommandBody, target url.Values, call Call) (*Outcome, error) {
	q := call.query()
	for name, values := range target {
		q[name] = values
	}
	out := new(Outcome)
	if name == "delete" {
		if body.By != "" {
			q.Set("by", body.By)
		}
		if body.Reason != "" {
			q.Set("reason", body.Reason)
		}
		return out, c.do(ctx, http.MethodDelete, operationPath(org, id), q, call.header(), nil, out)
	}
	data, err := Encode(body)
	if err != nil {
		return nil, fmt.Errorf("encode the command: %w", err)
	}
	h := call.header()
	h.Set("Content-Type", "application/json")
	return out, c.do(ctx, http.MethodPost, operationPath(org, id)+"/"+Segment(name), q, h, bytes.NewReader(data), out)
}

// Counts counts operations, of one organization or, with "", of all.
func (c *Client) Counts(ctx context.Context, org string, call Call) (*Counts, error) {
	q := call.query()
	if org != "" {
		q.Set("organization", org)
	}
	out := new(Counts)
	return out, c.do(ctx, http.MethodGet, "/v1/counts", q, call.header(), nil, out)
}

// Status asks the process about itself.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	out := new(Status)
	return out, c.do(ctx, http.MethodGet, "/v1/status", nil, nil, nil, out)
}

// ServerEvent is one event of /v1/events: operation carries a Change, counts the Counts.
type ServerEvent struct {
	Name string
	ID   string // to listen again from here
	Data json.RawMessage
}

// Events listens until the stream ends, f returns an error, or the context ends. The filter's names are the query
// parameters of the contract. It does not connect again: give the last id to the next call.
func (c *Client) Events(ctx context.Context, filter url.Values, lastEventID string, f func(ServerEvent) error) error {
	h := http.Header{}
	if lastEventID != "" {
		h.Set("Last-Event-ID", lastEventID)
	}
	resp, err := c.send(ctx, http.MethodGet, "/v1/events", filter, h, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	event := ServerEvent{ID: lastEventID}
	scanner := bufio.NewScanner(resp.Body)
	scanner.Buffer(nil, 4<<20)
	for scanner.Scan() {
		field, value, _ := strings.Cut(scanner.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case scanner.Text() == "":
			if event.Data != nil {
				if err := f(event); err != nil {
					return err
				}
			}
			event = ServerEvent{ID: event.ID}
		case field == "event":
			event.Name = value
		case field == "id":
			event.ID = value
		case field == "data":
			event.Data = json.RawMessage(value)
		}
	}
	if err := scanner.Err(); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return io.ErrUnexpectedEOF
}

func operationPath(org, id string) string {
	return "/v1/organizations/" + Segment(org) + "/operations/" + Segment(id)
}

// do sends a request and decodes the answer.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, header http.Header, body io.Reader, into any) error {
	resp, err := c.send(ctx, method, path, query, header, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("%s %s: expected an answer in JSON, but: %w", method, path, err)
	}
	return nil
}

// send sends a request; an answer that is none of success becomes an error.
func (c *Client) send(ctx context.Context, method, path string, query url.Values, header http.Header, body io.Reader) (*http.Response, error) {
	target := strings.TrimSuffix(c.Base, "/") + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	for name, values := range header {
		if name == HeaderIdempotencyKey {
			// Under its usual spelling net/http takes it for leave to send the request again when a connection breaks before the answer, and
			// tells nobody: the answer to the second, that the service is overloaded, say, would seem to be of a command that was not taken.
			name = strings.ToLower(name)
		}
		req.Header[name] = values
	}
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("expected an answer of %s, but none came; is the service running there? %w", c.Base, err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	p := new(Problem)
	if err != nil || !strings.HasPrefix(resp.Header.Get("Content-Type"), ProblemType) || json.Unmarshal(data, p) != nil {
		return nil, fmt.Errorf("%s %s: expected an answer of opstream, but got %s from %s; is it the right address?", method, path, resp.Status, c.Base)
	}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
		p.RetryAfter = time.Duration(seconds) * time.Second
	}
	return nil, p
}
