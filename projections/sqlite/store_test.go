package sqlite_test

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/projectiontest"
	"github.com/opstream/opstream/projections/sqlite"
)

func open(t *testing.T, path string, opts sqlite.Options) *sqlite.Store {
	t.Helper()
	store, err := sqlite.Open(t.Context(), path, opts)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return store
}

func TestConformance(t *testing.T) {
	t.Run("file", func(t *testing.T) {
		projectiontest.Run(t, func(t *testing.T) projections.Store {
			return open(t, filepath.Join(t.TempDir(), "tables of 100%?#.db"), sqlite.Options{})
		})
	})
	t.Run("memory", func(t *testing.T) {
		projectiontest.Run(t, func(t *testing.T) projections.Store { return open(t, "", sqlite.Options{}) })
	})
}

func TestReopened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tables.db")
	j := projectiontest.Random(1, 2, 300)
	entries, positions := j.All()
	store := open(t, path, sqlite.Options{Sync: true})
	if err := projections.NewProjector(store, 0).Project(t.Context(), entries, positions); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	store = open(t, path, sqlite.Options{})
	defer store.Close()
	report, err := projections.Verify(t.Context(), store, j)
	if err != nil || !report.OK() || report.Operations == 0 {
		t.Errorf("expected the same tables after they were opened again, but got %+v, %v", report, err)
	}
}

func TestRefusesOtherVersions(t *testing.T) {
	for _, c := range []struct{ change, want string }{
		{"INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)", "newer opstream"},
		{"UPDATE format SET version = version + 1", "remove the database"},
	} {
		path := filepath.Join(t.TempDir(), "tables.db")
		if err := open(t, path, sqlite.Options{}).Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(c.change); err != nil {
			t.Fatalf("%s: %v", c.change, err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if store, err := sqlite.Open(t.Context(), path, sqlite.Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: expected an error that says %q, but got %v, %v", c.change, c.want, store, err)
		}
	}
}

// TestVerifyFindsAMovedRejection changes what a rejection is found by, but not what it says.
func TestVerifyFindsAMovedRejection(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tables.db")
	j := projectiontest.Random(1, 2, 300)
	entries, positions := j.All()
	store := open(t, path, sqlite.Options{})
	defer store.Close()
	if err := projections.NewProjector(store, 0).Project(t.Context(), entries, positions); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	done, err := db.Exec("UPDATE rejections SET id_hash = id_hash + 1 WHERE key = (SELECT min(key) FROM rejections)")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := done.RowsAffected(); err != nil || n != 1 {
		t.Fatalf("expected a rejection in the tables, but got %d, %v", n, err)
	}
	report, err := projections.Verify(t.Context(), store, j)
	if err != nil || report.Differing != 1 || !strings.Contains(report.Differences[0].Have, "a rejection is not found by its id") {
		t.Errorf("expected the rejection to be found out, but got %+v, %v", report, err)
	}
}
