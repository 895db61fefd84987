package cockroach

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/pgtest"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/projectiontest"
)

// crowd makes the journal of many operations, of which nearly all succeed.
type crowd struct {
	next []int64
	made int
	now  operation.Time
}

var crowdTypes = []string{"workflow", "bulk-email", "system-event"}

func (c *crowd) batch(operations int) ([]projections.Entry, []projections.Position) {
	var entries []projections.Entry
	for n := range c.next {
		for range operations / len(c.next) {
			entries = c.operation(entries, int32(n))
		}
	}
	var positions []projections.Position
	for n, next := range c.next {
		positions = append(positions, projections.Position{Partition: int32(n), Next: next, Chain: make([]byte, 32), At: c.now})
	}
	return entries, positions
}

func (c *crowd) operation(out []projections.Entry, partition int32) []projections.Entry {
	c.made++
	c.now += 17
	x := uint64(c.made) * 0x9e3779b97f4a7c15
	x ^= x >> 29
	x *= 0xbf58476d1ce4e5b9
	q := &operation.Request{
		ID: operation.ID(fmt.Sprintf("%08x-%04x-4000-8000-%012x", uint32(x>>32), uint16(x), c.made)), Organization: fmt.Sprintf("contoso-%d", c.made%50),
		Type: crowdTypes[c.made%3], Name: "Send the newsletter", Priority: 4, Raw: []byte(strings.Repeat("abcdefghijklmnopqrstuvwxyz", 16)),
	}
	switch {
	case c.made%1000 == 0:
		q.Type, q.Organization = "rare", "fabrikam"
	case c.made%20 == 0:
		q.DependencyToken = "token-" + strconv.Itoa(c.made/2000)
	case c.made%20 == 1:
		q.Context = &operation.Context{CorrelationID: "correlation-" + strconv.Itoa(c.made/2000)}
	}
	e := operation.Event{Org: q.Organization, ID: q.ID, At: c.now}
	add := func(kind operation.EventKind) *operation.Event {
		e.Kind = kind
		e.Cause = operation.Cause{Topic: "requests", Offset: c.next[partition]}
		out = append(out, projections.Entry{Partition: partition, Place: operation.Place(c.next[partition]), Event: e})
		c.next[partition]++
		return &out[len(out)-1].Event
	}
	add(operation.Requested).Request = q
	if c.made%100 == 3 {
		return out // waits for a worker
	}
	e.Attempt, e.Session = 1, "7d0d6a52-0f4e-4f0e-9f0e-4f0e9f0e4f0e"
	add(operation.Dispatched)
	if c.made%500 == 7 {
		return out // is running
	}
	add(operation.Started).StartedAt = c.now
	if c.made%100 == 5 {
		add(operation.Failed).Failure = &operation.Failure{Code: "broken"}
		return out
	}
	add(operation.Succeeded)
	return out
}

// filled is a store with at least this many operations, and statistics of them.
func filled(t testing.TB, address string, opts Options, operations int) (*Store, *crowd) {
	t.Helper()
	store, err := Open(address, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	c := &crowd{next: make([]int64, 12), now: 1_800_000_000_000_000}
	p := projections.NewProjector(store, 0)
	for c.made < operations {
		entries, positions := c.batch(6000)
		if err := p.Project(t.Context(), entries, positions); err != nil {
			t.Fatal(err)
		}
	}
	// Commands that change nothing, for histories that go on, and refused ones.
	entries, _ := c.batch(6000)
	var more []projections.Entry
	for _, e := range entries {
		if e.Event.Kind == operation.Requested {
			for _, kind := range []operation.EventKind{operation.Unchanged, operation.Rejected} {
				again := operation.Event{Kind: kind, Org: e.Event.Org, ID: e.Event.ID, At: c.now, Command: operation.Cancel}
				if kind == operation.Rejected {
					again.ID += "-unknown"
				}
				more = append(more, projections.Entry{Partition: e.Partition, Place: operation.Place(c.next[e.Partition]), Event: again})
				c.next[e.Partition]++
			}
		}
	}
	_, positions := c.batch(0)
	half := make([]projections.Position, len(positions))
	for n := range positions {
		half[n] = positions[n]
		for i := range more {
			if more[i].Partition == int32(n) {
				half[n].Next = min(half[n].Next, int64(more[i].Place))
			}
		}
	}
	if err := p.Project(t.Context(), entries, half); err != nil {
		t.Fatal(err)
	}
	if err := p.Project(t.Context(), more, positions); err != nil {
		t.Fatal(err)
	}
	if _, err := store.pool.Exec(t.Context(), "ANALYZE"); err != nil {
		t.Fatal(err)
	}
	return store, c
}

// filters are one of each kind that the API can ask for.
func filters(c *crowd) []projections.Filter {
	middle := operation.Time(1_800_000_000_000_000) + operation.Time(c.made/2*17)
	all := []projections.Filter{
		{},
		{Organization: "contoso-7"},
		{Organization: "fabrikam"},
		{Organization: "nobody"},
		{Types: []string{"workflow"}},
		{Types: []string{"rare"}},
		{Types: []string{"workflow", "rare", "none"}},
		{Statuses: []operation.Status{operation.StatusReady}},
		{Statuses: []operation.Status{operation.StatusReady, operation.StatusFailed, operation.StatusWaiting}},
		{Statuses: []operation.Status{operation.StatusCanceled}},
		{Statuses: []operation.Status{operation.StatusSucceeded}},
		{Statuses: []operation.Status{operation.StatusSucceeded, operation.StatusFailed}},
		{Statuses: []operation.Status{operation.StatusFailed}, Organization: "contoso-7"},
		{Statuses: []operation.Status{operation.StatusSucceeded}, Organization: "contoso-7"},
		{Waits: []operation.Wait{operation.WaitResources}},
		{Waits: []operation.Wait{operation.WaitDependency}, Organization: "contoso-7"},
		{Types: []string{"rare"}, Organization: "contoso-7"},
		{Types: []string{"workflow"}, Organization: "fabrikam"},
		{DependencyToken: "token-3"},
		{DependencyToken: "token-3", Organization: "contoso-10", Types: []string{"workflow"}},
		{DependencyToken: "none"},
		{CorrelationID: "correlation-3"},
		{CorrelationID: "correlation-3", DependencyToken: "token-3"},
		{ModifiedFrom: middle},
		{ModifiedTo: 5},
		{ModifiedFrom: middle, ModifiedTo: middle + 1000, Organization: "contoso-7"},
	}
	for _, f := range all[:8] {
		f.CreatedFrom, f.CreatedTo = middle, middle+1_000_000
		all = append(all, f)
	}
	var many []string
	for i := range 200 {
		many = append(many, "type-"+strconv.Itoa(i))
	}
	return append(all, projections.Filter{Types: many})
}

// node is one of a plan in PostgreSQL's JSON.
type node struct {
	Type    string  `json:"Node Type"`
	Table   string  `json:"Relation Name"`
	Index   string  `json:"Index Name"`
	Rows    float64 `json:"Actual Rows"`
	Loops   float64 `json:"Actual Loops"`
	Removed float64 `json:"Rows Removed by Filter"`
	Plans   []node  `json:"Plans"`
}

// explain runs a query and returns what was done for it.
func explain(t *testing.T, store *Store, query string, args []any) (node, string) {
	t.Helper()
	var text string
	if err := store.pool.QueryRow(t.Context(), "EXPLAIN (ANALYZE, FORMAT JSON) "+query, append([]any{pgx.QueryExecModeExec}, args...)...).Scan(&text); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	var plans []struct{ Plan node }
	if err := json.Unmarshal([]byte(text), &plans); err != nil {
		t.Fatal(err)
	}
	return plans[0].Plan, text
}

// faults tells what of a plan costs more than a page may: all rows of a table read or sorted, or more of them looked at than the
// budget allows.
func (n *node) faults(most float64) (out []string) {
	if n.Type == "Seq Scan" && n.Table != "counts" && n.Table != "positions" {
		out = append(out, "all of "+n.Table+" is read")
	}
	if n.Table == "operations" && n.Index == "" {
		out = append(out, n.Type+" of "+n.Table+" without an index's order")
	}
	if rows := (n.Rows + n.Removed) * n.Loops; rows > most {
		out = append(out, fmt.Sprintf("%s looks at %.0f rows", n.Type, rows))
	}
	for i := range n.Plans {
		out = append(out, n.Plans[i].faults(most)...)
	}
	return out
}

// TestListsDoNotScan asks PostgreSQL what it did for every kind of list: of 50 000 operations, with the budget of a page in
// proportion, or of as many as OPSTREAM_TEST_ROWS says.
func TestListsDoNotScan(t *testing.T) {
	operations, budget := 50_000, 1000
	if text := os.Getenv("OPSTREAM_TEST_ROWS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 20*defaultBudget {
			t.Fatalf("expected OPSTREAM_TEST_ROWS to be a number of at least %d, but got %q", 20*defaultBudget, text)
		}
		operations, budget = n, defaultBudget
	}
	for _, buckets := range []int{1, 8} {
		t.Run(fmt.Sprintf("%d buckets", buckets), func(t *testing.T) {
			begun := time.Now()
			store, c := filled(t, pgtest.Postgres(t), Options{Buckets: buckets}, operations)
			store.budget = budget
			t.Logf("%d operations written in %s", c.made, time.Since(begun).Round(time.Millisecond))
			// A walk looks at each row once, and a page that ends early at its own rows again; in each bucket it may look at one
			// row more than it takes, and the shortest walk of several is found by looking at the first of each.
			most := float64(budget + 1 + maxBranches)
			middle := projections.Mark{Created: operation.Time(1_800_000_000_000_000) + operation.Time(c.made/2*17), Key: projections.KeyOf(5, 100)}
			var slowest time.Duration
			for _, f := range filters(c) {
				for _, order := range []projections.Order{projections.NewestFirst, projections.OldestFirst} {
					for _, after := range []*projections.Mark{nil, &middle} {
						w := newWalk(&f, order, after, buckets, budget)
						if err := store.choose(t.Context(), w); err != nil {
							t.Fatal(err)
						}
						query, args := w.page(51)
						check(t, store, query, args, most)
						if w.residual() {
							query, args = w.pageAndEnd(51)
							check(t, store, query, args, most)
						}
						cursor := ""
						if after != nil {
							cursor = projections.Cursor(*after, &f, order)
						}
						began := time.Now()
						if _, err := store.List(t.Context(), f, order, cursor, 50); err != nil {
							t.Fatal(err)
						}
						slowest = max(slowest, time.Since(began))
					}
				}
			}
			t.Logf("the slowest page took %s", slowest.Round(100*time.Microsecond))
			for query, args := range map[string][]any{
				"SELECT key, state, history, request FROM operations WHERE id_hash = $1 ORDER BY created DESC, key DESC":                                               {int64(5)},
				"SELECT events FROM operation_events WHERE bucket = $1 AND key = $2 AND first >= 0 ORDER BY first LIMIT 10":                                            {int16(0), int64(5)},
				"SELECT key, at, body FROM rejections WHERE id_hash = $1 ORDER BY at DESC, key DESC LIMIT 10":                                                          {int64(5)},
				"SELECT key, org, type FROM operations WHERE bucket = $1 AND key > $2 ORDER BY key LIMIT 500":                                                          {int16(0), int64(5)},
				"SELECT o.key FROM unnest($1::bigint[], $2::bigint[], $2::bigint[]) AS u (h, l, m) JOIN operations o ON o.id_hash = u.h AND o.key BETWEEN u.l AND u.m": {[]int64{1, 2, 3}, []int64{1, 2, 3}},
			} {
				check(t, store, query, args, most)
			}
		})
	}
}

func check(t *testing.T, store *Store, query string, args []any, most float64) {
	t.Helper()
	plan, text := explain(t, store, query, args)
	if faults := plan.faults(most); len(faults) > 0 {
		t.Errorf("expected to walk along an index, but %s:\n%s\n%v\n%.4000s", strings.Join(faults, "; "), query, args, text)
	}
}

// TestShortWalks lists with pages that end after a few rows were looked at.
func TestShortWalks(t *testing.T) {
	for _, buckets := range []int{1, 3} {
		store := opened(t, pgtest.Postgres(t), Options{Buckets: buckets})
		store.budget = 7
		projectiontest.TestLists(t, store)
	}
}
