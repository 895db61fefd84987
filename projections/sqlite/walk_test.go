package sqlite

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/projectiontest"
)

// TestShortWalks lists with pages that end after a few rows were looked at.
func TestShortWalks(t *testing.T) {
	defer func(was int) { budget = was }(budget)
	budget = 7
	store, err := Open(t.Context(), filepath.Join(t.TempDir(), "tables.db"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	projectiontest.TestLists(t, store)
}

// TestWalksDoNotSort asks SQLite how it would go: along an index, a page costs the same however long the list is; with a sort it
// would cost the whole list.
func TestWalksDoNotSort(t *testing.T) {
	store, err := Open(t.Context(), filepath.Join(t.TempDir(), "tables.db"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	j := projectiontest.Random(3, 3, 4000)
	entries, positions := j.All()
	if err := projections.NewProjector(store, 0).Project(t.Context(), entries, positions); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		filter projections.Filter
		index  string
	}{
		{projections.Filter{}, "operations_by_created"},
		{projections.Filter{Organization: "contoso"}, "operations_by_org"},
		{projections.Filter{Types: []string{"workflow"}}, "operations_by_type"},
		{projections.Filter{Types: []string{"workflow", "bulk-delete"}}, "operations_by_type"},
		{projections.Filter{Statuses: []operation.Status{operation.StatusCanceling}}, "operations_by_status"},
		{projections.Filter{Statuses: []operation.Status{operation.StatusCanceling, operation.StatusPausing, operation.StatusFailed}}, "operations_by_status"},
		{projections.Filter{Statuses: []operation.Status{operation.StatusSucceeded}}, "operations_by_created"},
		{projections.Filter{Statuses: []operation.Status{operation.StatusCanceling}, Organization: "contoso"}, "operations_by_status"},
		{projections.Filter{DependencyToken: "token", Organization: "contoso"}, "operations_by_token"},
		{projections.Filter{CorrelationID: "correlation", CreatedFrom: 5, CreatedTo: 1 << 60}, "operations_by_correlation"},
	} {
		for _, order := range []projections.Order{projections.NewestFirst, projections.OldestFirst} {
			tx, err := store.read.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			w, err := newWalk(t.Context(), tx, &c.filter)
			if err != nil {
				t.Fatal(err)
			}
			query, args := w.sql(order, &projections.Mark{Created: 1_800_000_000_000_500, Key: 5}, 50)
			rows, err := tx.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+query, args...)
			if err != nil {
				t.Fatalf("%s: %v", query, err)
			}
			defer rows.Close()
			var plan strings.Builder
			for rows.Next() {
				var id, parent, unused int
				var line string
				if err := rows.Scan(&id, &parent, &unused, &line); err != nil {
					t.Fatal(err)
				}
				plan.WriteString(line + "\n")
			}
			if err := rows.Err(); err != nil {
				t.Fatal(err)
			}
			if w.index != c.index || strings.Contains(plan.String(), "TEMP B-TREE") || !strings.Contains(plan.String(), c.index+" (") {
				t.Errorf("%+v, order %d: expected a walk along %s without a sort, but chose %s:\n%s\n%s", c.filter, order, c.index, w.index, query, plan.String())
			}
			if err := tx.Rollback(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestMovedIDs runs histories with a table of new ids that is full at once.
func TestMovedIDs(t *testing.T) {
	for _, full := range []int64{1} {
		store, err := Open(t.Context(), filepath.Join(t.TempDir(), "tables.db"), Options{})
		if err != nil {
			t.Fatal(err)
		}
		store.apply.minNew = full
		projectiontest.TestHistories(t, store)
		var old int
		if err := store.read.QueryRowContext(t.Context(), "SELECT count(*) FROM ids").Scan(&old); err != nil || old == 0 {
			t.Errorf("full at %d: expected ids to have been moved, but got %d, %v", full, old, err)
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
