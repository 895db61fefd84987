package cockroach_test

import (
	"testing"

	"github.com/opstream/opstream/internal/pgtest"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/cockroach"
	"github.com/opstream/opstream/projections/projectiontest"
)

// databases are those that every test of a store runs on, with the isolation that transactions have unless they say otherwise.
var databases = []struct {
	name      string
	url       func(testing.TB) string
	isolation string
	opts      cockroach.Options
}{
	{"PostgreSQL, READ COMMITTED", pgtest.Postgres, "read committed", cockroach.Options{}},
	{"PostgreSQL, SERIALIZABLE", pgtest.Postgres, "serializable", cockroach.Options{}},
	{"PostgreSQL, 3 buckets", pgtest.Postgres, "read committed", cockroach.Options{Buckets: 3}},
	{"CockroachDB", pgtest.Cockroach, "serializable", cockroach.Options{}},
}

func onEach(t *testing.T, test func(t *testing.T, open func(t *testing.T) *cockroach.Store)) {
	for _, d := range databases {
		t.Run(d.name, func(t *testing.T) {
			test(t, func(t *testing.T) *cockroach.Store {
				t.Helper()
				store, err := cockroach.Open(pgtest.With(t, d.url(t), "default_transaction_isolation", d.isolation), d.opts)
				if err != nil {
					t.Fatalf("open: %v", err)
				}
				return store
			})
		})
	}
}

func TestConformance(t *testing.T) {
	onEach(t, func(t *testing.T, open func(t *testing.T) *cockroach.Store) {
		projectiontest.Run(t, func(t *testing.T) projections.Store { return open(t) })
	})
}
