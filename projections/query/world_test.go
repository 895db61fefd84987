package query_test

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/internal/api/apitest"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/projectiontest"
	"github.com/opstream/opstream/projections/query"
	"github.com/opstream/opstream/projections/sqlite"
	"github.com/opstream/opstream/schemas"
)

// world is a journal whose events come from the real state machine, projected into a real store, and queries over it.
type world struct {
	t       testing.TB
	journal *projectiontest.Journal
	states  map[projections.Ref]*operation.State
	now     operation.Time

	store *breakable
	fold  *projections.Projector
	held  *level
	feed  *query.Feed

	contract *apitest.Contract
	config   query.Config
	q        *query.Query
	h        http.Handler
}

// breakable is a store that can be made to fail.
type breakable struct {
	projections.Store
	fault atomic.Pointer[error]
}

// fails makes all reads fail with err, or none when it is nil.
func (b *breakable) fails(err error) { b.fault.Store(&err) }

func (b *breakable) err() error {
	if fault := b.fault.Load(); fault != nil {
		return *fault
	}
	return nil
}

func (b *breakable) Get(ctx context.Context, org string, id operation.ID) (projections.Row, error) {
	if err := b.err(); err != nil {
		return projections.Row{}, err
	}
	return b.Store.Get(ctx, org, id)
}

func (b *breakable) List(ctx context.Context, f projections.Filter, o projections.Order, cursor string, limit int) (projections.Page, error) {
	if err := b.err(); err != nil {
		return projections.Page{}, err
	}
	return b.Store.List(ctx, f, o, cursor, limit)
}

func (b *breakable) History(ctx context.Context, org string, id operation.ID, after operation.Place, limit int) ([]projections.Entry, error) {
	if err := b.err(); err != nil {
		return nil, err
	}
	return b.Store.History(ctx, org, id, after, limit)
}

func (b *breakable) Counts(ctx context.Context, f projections.CountFilter) ([]projections.Count, error) {
	if err := b.err(); err != nil {
		return nil, err
	}
	return b.Store.Counts(ctx, f)
}

const partitions = 2

func newWorld(t testing.TB) *world {
	t.Helper()
	store, err := sqlite.Open(t.Context(), "", sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	w := &world{
		t: t, journal: projectiontest.NewJournal(partitions), states: map[projections.Ref]*operation.State{},
		now: operation.TimeOf(time.Date(2030, 1, 31, 8, 0, 0, 0, time.UTC)), store: &breakable{Store: store}, held: newLevel(), feed: query.NewFeed(),
	}
	w.fold = projections.NewProjector(store, 0)
	w.fold.OnCommitted = w.feed.PublishBatch
	w.contract = apitest.Load(t, "query")
	w.config = query.Config{
		Store: w.store, Progress: w.held, Feed: w.feed, ListenersMax: 3,
		Status: func(context.Context) api.Status {
			return api.Status{Version: "1.2.3", Roles: []string{"api", "projector"}, Ready: true}
		},
	}
	w.q = query.New(w.config)
	w.h = w.contract.Handler(t, w.q.Routes())
	return w
}

// do lets a command happen to an operation of a partition, and shows it in the tables. It returns its position.
func (w *world) do(partition int32, c operation.Command) string {
	w.t.Helper()
	if c.Org == "" {
		c.Org = "acme"
	}
	ref := projections.Ref{Partition: partition, Org: c.Org, ID: c.ID}
	s := w.states[ref]
	if s == nil {
		s = &operation.State{}
		w.states[ref] = s
	}
	if c.Policy == nil {
		c.Policy = &retry.Policy{MaxAttempts: 3, Initial: time.Minute}
	}
	if c.Kind.Report() {
		c.Attempt, c.Session = s.Attempt, s.Session
	}
	w.now = w.now.Add(time.Second)
	events, rejection := operation.Decide(nil, s, &c, w.now)
	var place operation.Place
	if rejection != nil {
		place = w.journal.Append(partition, operation.Event{
			Kind: operation.Rejected, Org: c.Org, ID: c.ID, At: w.now, Command: c.Kind, CommandID: c.CommandID, By: c.By,
			Code: rejection.Code, Reason: rejection.Reason, Cause: c.Cause,
		})
	}
	for i := range events {
		place = w.journal.Append(partition, events[i])
		s.Apply(&events[i], place)
	}
	w.project()
	return fmt.Sprintf("%d-%d", partition, place)
}

// project brings the tables level with the journal.
func (w *world) project() {
	w.t.Helper()
	entries, positions := w.journal.All()
	if err := w.fold.Project(w.t.Context(), entries, positions); err != nil {
		w.t.Fatal(err)
	}
	w.held.advance(positions, 12*time.Millisecond)
}

// submit submits a request that is given as callers give it.
func (w *world) submit(partition int32, request string, upstream ...operation.ID) string {
	w.t.Helper()
	r, err := schemas.ParseRequest([]byte(request), "")
	if err != nil {
		w.t.Fatal(err)
	}
	c := operation.Command{Kind: operation.Submit, Org: r.Organization, ID: r.ID, CommandID: string(r.ID), Request: r, Cause: operation.Cause{Topic: "requests", Offset: 7}}
	if len(upstream) > 0 {
		c.Upstream = upstream[0]
	}
	return w.do(partition, c)
}

// simple submits an operation of organization acme and lets the given commands happen to it.
func (w *world) simple(id, kind string, then ...operation.Command) {
	w.t.Helper()
	w.submit(0, fmt.Sprintf(`{"id":%q,"organization":"acme","type":%q,"name":"Operation %s"}`, id, kind, id))
	for _, c := range then {
		c.ID = operation.ID(id)
		w.do(0, c)
	}
}

var (
	dispatch = operation.Command{Kind: operation.Dispatch, Session: "worker-1"}
	begin    = operation.Command{Kind: operation.Start, StartedAt: 1_900_000_000_000_000}
	succeed  = operation.Command{Kind: operation.Succeed, StartedAt: 1_900_000_000_000_000, Result: []byte(`{"deleted":7}`)}
	canceled = operation.Command{Kind: operation.Cancel, By: operation.By{Who: "Ann", Reason: "the wrong list"}}
)

func failWith(class retry.Class, message string) operation.Command {
	return operation.Command{Kind: operation.Fail, StartedAt: 1_900_000_000_000_000, Failure: &operation.Failure{Code: "smtp_down", ErrorCode: -2147204346, Message: message, Class: class}}
}

func (w *world) get(path string, headers ...string) apitest.Answer {
	w.t.Helper()
	return apitest.Do(w.t, w.h, "GET", path, "", headers...)
}
