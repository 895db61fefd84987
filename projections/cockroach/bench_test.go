package cockroach

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/opstream/opstream/internal/pgtest"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/sqlite"
)

// BenchmarkRebuild projects the same operations into this store and into a file, in batches of so many operations, four events
// each. The server is the tests' own (fsync off) unless OPSTREAM_TEST_POSTGRES names another. Run it with -benchtime 100000x.
func BenchmarkRebuild(b *testing.B) {
	for _, size := range []int{24, 240, 4800} {
		for _, into := range []struct {
			name string
			open func(b *testing.B) (projections.Store, error)
		}{
			{"postgres", func(b *testing.B) (projections.Store, error) { return Open(pgtest.Postgres(b), Options{}) }},
			{"sqlite", func(b *testing.B) (projections.Store, error) {
				return sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "tables.db"), sqlite.Options{})
			}},
		} {
			b.Run(fmt.Sprintf("%s/operations=%d", into.name, size), func(b *testing.B) {
				store, err := into.open(b)
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { store.Close() })
				if _, err := store.Positions(b.Context()); err != nil { // makes the tables
					b.Fatal(err)
				}
				c := &crowd{next: make([]int64, 12), now: 1_800_000_000_000_000}
				p := projections.NewProjector(store, 0)
				var took time.Duration
				for c.made < b.N {
					entries, positions := c.batch(size)
					began := time.Now()
					if err := p.Project(b.Context(), entries, positions); err != nil {
						b.Fatal(err)
					}
					took += time.Since(began)
				}
				b.ReportMetric(float64(c.made)/took.Seconds(), "operations/s")
			})
		}
	}
}
