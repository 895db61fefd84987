package query

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/optype"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/projections"
)

// Config is what the query half needs.
type Config struct {
	Store    projections.Reader
	Progress Progress
	Feed     *Feed
	// Status tells of the process, for the page.
	Status func(ctx context.Context) api.Status
	// ListenersMax bounds the clients of /v1/events. Default 1000.
	ListenersMax int
	// Heartbeat is the time after which a silent stream shows that it lives. Default 15 s.
	Heartbeat time.Duration
}

func (c Config) withDefaults() Config {
	if c.ListenersMax == 0 {
		c.ListenersMax = 1000
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = 15 * time.Second
	}
	return c
}

// Query answers questions. It implements what the command half wants of the tables: Locate and Await.
type Query struct {
	Config
	listeners atomic.Int64

	countsMu sync.Mutex // held while counting, so that any number of listeners count once
	counts   map[string]countsAt
}

type countsAt struct {
	at     time.Time
	counts api.Counts
}

// New returns the query half.
func New(c Config) *Query { return &Query{Config: c.withDefaults(), counts: map[string]countsAt{}} }

// The times of a read.
const (
	afterWait = 5 * time.Second  // for positions, when the caller does not say
	storeTime = 10 * time.Second // for the database
)

// Routes returns the routes with the tag query.
func (q *Query) Routes() []api.Route {
	const one = "/v1/organizations/{organization}/operations/{id}"
	get := func(path string, handle func(http.ResponseWriter, *http.Request) error, query ...string) api.Route {
		return api.Route{Method: http.MethodGet, Path: path, Query: query, Handle: handle}
	}
	events := get("/v1/events", q.events, "organization", "id", "events")
	events.Stream = true
	return []api.Route{
		get("/v1/operations", q.list, "organization", "status", "wait", "type", "token", "correlationId",
			"createdAfter", "createdBefore", "modifiedAfter", "modifiedBefore", "limit", "cursor", "order", "after"),
		get(one, q.get, "after"),
		get(one+"/history", q.history, "limit", "cursor", "after"),
		get("/v1/counts", q.getCounts, "organization", "after"),
		events,
		get("/", q.page),
		get("/assets/{name}", asset),
	}
}

// fresh waits for the positions that the caller names, and tells in the answer's header which ones it shows. They are taken
// before the tables are read, so that the answer shows them at least.
func (q *Query) fresh(w http.ResponseWriter, r *http.Request) error {
	if text := r.URL.Query().Get("after"); text != "" {
		after, err := api.ParsePositions(text)
		if err != nil {
			return api.NewProblem(api.InvalidParameter, "%s", err).At("after")
		}
		wait, given := api.PreferredWait(r.Header)
		if !given {
			wait = afterWait
		}
		if err := q.reach(r.Context(), after, wait); err != nil {
			return err
		}
		if given {
			api.ApplyWait(w, wait)
		}
	}
	positions, lag, err := q.Progress.AsOf(r.Context())
	if err != nil {
		return unavailable(r.Context(), err)
	}
	w.Header().Set(api.HeaderAsOf, positions.String())
	w.Header().Set(api.HeaderLag, strconv.FormatInt(max(0, lag.Milliseconds()), 10))
	return nil
}

// reach waits until the tables hold all the positions.
func (q *Query) reach(ctx context.Context, after api.Positions, wait time.Duration) error {
	bounded, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for _, p := range after {
		err := q.Progress.WaitFor(bounded, p.Partition, p.Place)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			return api.NewProblem(api.ReadSideBehind, "the tables do not hold position %s yet, after %s of waiting", p, wait).At("after")
		default:
			return api.NewProblem(api.ReadSideUnavailable, "position %s cannot be waited for: the tables cannot be read, or nobody brings them up to date in this partition", p).At("after").Because(err)
		}
	}
	return nil
}

// unavailable says that the tables cannot be read, unless it is the caller who has gone. A deadline is the database's, which has let it
// pass.
func unavailable(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	return api.NewProblem(api.ReadSideUnavailable, "the database does not answer; operations are accepted and run as ever").Because(err)
}

func (q *Query) get(w http.ResponseWriter, r *http.Request) error {
	org, id, err := named(r)
	if err != nil {
		return err
	}
	if err := q.fresh(w, r); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), storeTime)
	defer cancel()
	row, err := q.Store.Get(ctx, org, id)
	if err != nil {
		return q.missing(ctx, org, id, err)
	}
	return api.WriteJSON(w, http.StatusOK, show(&row, true))
}

func named(r *http.Request) (string, operation.ID, error) {
	org, err := api.PathName(r, "organization")
	if err != nil {
		return "", "", err
	}
	id, err := api.PathName(r, "id")
	return org, operation.ID(id), err
}

// missing answers for an operation that the tables do not have. If a command about it was refused, that says more than
// that it is not there.
func (q *Query) missing(ctx context.Context, org string, id operation.ID, err error) error {
	if !errors.Is(err, projections.ErrNotFound) {
		return unavailable(ctx, err)
	}
	p := api.NewProblem(api.Code(operation.NotFound), "the tables have no operation %s of organization %s", id, org)
	refused, err := q.Store.Rejections(ctx, org, id, 1)
	if err == nil && len(refused) > 0 {
		r := &refused[0]
		p.Detail += fmt.Sprintf("; the last command about it, %s at %s, was refused: %s: %s", r.Command, at(r.At), r.Code, r.Reason)
		p.Position = positionOf(r.Partition, r.Place).String()
	}
	return p
}

func (q *Query) list(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	filter, err := parseFilter(query)
	if err != nil {
		return err
	}
	limit, err := parseLimit(query)
	if err != nil {
		return err
	}
	order := projections.NewestFirst
	switch query.Get("order") {
	case "", "newest":
	case "oldest":
		order = projections.OldestFirst
	default:
		return api.NewProblem(api.InvalidParameter, "expected newest or oldest").At("order")
	}
	if err := q.fresh(w, r); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), storeTime)
	defer cancel()
	page, err := q.Store.List(ctx, filter, order, query.Get("cursor"), limit)
	if err != nil {
		var cursor *projections.CursorError
		if errors.As(err, &cursor) {
			return api.NewProblem(api.InvalidCursor, "%s", cursor).At("cursor")
		}
		return unavailable(ctx, err)
	}
	out := api.List{Operations: make([]api.Operation, len(page.Rows)), Next: page.Next}
	for i := range page.Rows {
		out.Operations[i] = show(&page.Rows[i], false)
	}
	return api.WriteJSON(w, http.StatusOK, out)
}

func parseFilter(query url.Values) (projections.Filter, error) {
	var f projections.Filter
	var err error
	if f.Organization, err = given(query, "organization"); err != nil {
		return f, err
	}
	if f.DependencyToken, err = given(query, "token"); err != nil {
		return f, err
	}
	if f.CorrelationID, err = given(query, "correlationId"); err != nil {
		return f, err
	}
	for _, name := range split(query, "status") {
		s, ok := operation.ParseStatus(name)
		if !ok || s == operation.StatusAbsent {
			return f, api.NewProblem(api.InvalidParameter, "there is no status %q", shorten(name)).At("status")
		}
		f.Statuses = append(f.Statuses, s)
	}
	for _, name := range split(query, "wait") {
		wait, ok := operation.ParseWait(name)
		if !ok || wait == operation.WaitNone {
			return f, api.NewProblem(api.InvalidParameter, "there is no wait reason %q", shorten(name)).At("wait")
		}
		f.Waits = append(f.Waits, wait)
	}
	for _, name := range split(query, "type") {
		if code, err := strconv.Atoi(name); err == nil {
			t, ok := optype.ByCode(code)
			if !ok {
				return f, api.NewProblem(api.InvalidParameter, "the original has no operation type %d", code).At("type")
			}
			name = t.Name
		}
		if !optype.ValidName(name) {
			return f, api.NewProblem(api.InvalidParameter, "%q cannot be the name of a type", shorten(name)).At("type")
		}
		f.Types = append(f.Types, name)
	}
	for name, into := range map[string]*operation.Time{
		"createdAfter": &f.CreatedFrom, "createdBefore": &f.CreatedTo, "modifiedAfter": &f.ModifiedFrom, "modifiedBefore": &f.ModifiedTo,
	} {
		if !query.Has(name) {
			continue
		}
		t, err := time.Parse(time.RFC3339Nano, query.Get(name))
		if err != nil || t.UTC().Year() < 1 || t.UTC().Year() > 9999 {
			return f, api.NewProblem(api.InvalidParameter, "expected a time as in RFC 3339, such as 2030-01-31T08:00:00Z (a plus sign as %%2B)").At(name)
		}
		*into = operation.TimeOf(t)
	}
	return f, nil
}

// given returns what a filter lets through, "" when there is no filter. One that is there and empty comes of a variable that its
// sender did not set; taken for none, it would answer a question about one organization with the operations of all.
func given(query url.Values, name string) (string, error) {
	value := query.Get(name)
	if value == "" && query.Has(name) {
		return "", api.NewProblem(api.InvalidParameter, "expected a value, but it is empty; leave the parameter out to see all").At(name)
	}
	return value, nil
}

func split(query url.Values, name string) []string {
	if !query.Has(name) {
		return nil
	}
	return strings.Split(query.Get(name), ",")
}

func shorten(s string) string {
	if len(s) > 60 {
		return strings.ToValidUTF8(s[:60], "") + "…"
	}
	return s
}

const limitDefault = 100

func parseLimit(query url.Values) (int, error) {
	if !query.Has("limit") {
		return limitDefault, nil
	}
	n, err := strconv.Atoi(query.Get("limit"))
	if err != nil || n < 1 || n > projections.MaxLimit {
		return 0, api.NewProblem(api.InvalidParameter, "expected a number from 1 to %d", projections.MaxLimit).At("limit")
	}
	return n, nil
}

func (q *Query) history(w http.ResponseWriter, r *http.Request) error {
	org, id, err := named(r)
	if err != nil {
		return err
	}
	query := r.URL.Query()
	limit, err := parseLimit(query)
	if err != nil {
		return err
	}
	after := operation.Place(-1)
	if query.Has("cursor") {
		n, err := strconv.ParseUint(query.Get("cursor"), 10, 63)
		if err != nil {
			return api.NewProblem(api.InvalidCursor, "expected the next of the page before").At("cursor")
		}
		after = operation.Place(n)
	}
	if err := q.fresh(w, r); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), storeTime)
	defer cancel()
	entries, err := q.Store.History(ctx, org, id, after, limit)
	if err != nil {
		return q.missing(ctx, org, id, err)
	}
	out := api.History{Organization: org, ID: string(id), Events: make([]api.HistoryEvent, len(entries))}
	for i := range entries {
		out.Events[i] = showEvent(&entries[i])
	}
	if len(entries) == limit {
		out.Next = strconv.FormatInt(int64(entries[limit-1].Place), 10)
	}
	return api.WriteJSON(w, http.StatusOK, out)
}

func (q *Query) getCounts(w http.ResponseWriter, r *http.Request) error {
	org, err := given(r.URL.Query(), "organization")
	if err != nil {
		return err
	}
	if err := q.fresh(w, r); err != nil {
		return err
	}
	counts, err := q.count(r.Context(), org)
	if err != nil {
		return err
	}
	return api.WriteJSON(w, http.StatusOK, counts)
}

func (q *Query) count(ctx context.Context, org string) (api.Counts, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	counts, err := q.Store.Counts(ctx, projections.CountFilter{Organization: org})
	if err != nil {
		return api.Counts{}, unavailable(ctx, err)
	}
	return showCounts(org, counts), nil
}

// sharedCounts returns counts that were begun after the given time, counting at most once for all who ask at the same time.
func (q *Query) sharedCounts(ctx context.Context, org string, after time.Time) (countsAt, error) {
	q.countsMu.Lock()
	defer q.countsMu.Unlock()
	if c, ok := q.counts[org]; ok && c.at.After(after) {
		return c, nil
	}
	now := time.Now()
	counts, err := q.count(ctx, org)
	if err != nil {
		return countsAt{}, err
	}
	if len(q.counts) > 256 { // organizations that nobody looks at any more
		clear(q.counts)
	}
	q.counts[org] = countsAt{now, counts}
	return q.counts[org], nil
}

// Locate finds an operation's partition key, once the tables hold the given positions.
func (q *Query) Locate(ctx context.Context, org string, id operation.ID, after api.Positions) (string, bool, error) {
	if err := q.reach(ctx, after, afterWait); err != nil {
		return "", false, err
	}
	bounded, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	row, err := q.Store.Get(bounded, org, id)
	switch {
	case errors.Is(err, projections.ErrNotFound):
		return "", false, nil
	case err != nil:
		return "", false, unavailable(ctx, err)
	}
	return row.Request.Key(), true, nil
}

// Await returns the operation as soon as the tables hold the position and done says yes of the operation. When the context
// ends first it returns the context's error, and the operation as it was last seen, if it was.
func (q *Query) Await(ctx context.Context, org string, id operation.ID, from api.Position, done func(*api.Operation) bool) (*api.Operation, error) {
	sub := q.Feed.Subscribe(Interest{Organization: org, ID: string(id), SignalOnly: true})
	defer sub.Close()
	if err := q.Progress.WaitFor(ctx, from.Partition, from.Place); err != nil {
		return nil, err
	}
	var last *api.Operation
	for {
		row, err := q.Store.Get(ctx, org, id)
		switch {
		case err == nil:
			o := show(&row, true)
			last = &o
			if done(last) {
				return last, nil
			}
		case ctx.Err() != nil:
			return last, ctx.Err()
		default:
			return last, err // a store that fails, or an operation that was deleted meanwhile
		}
		if err := sub.wait(ctx); err != nil {
			return last, err
		}
		if err := sub.Take().Err; err != nil {
			return last, err
		}
	}
}
