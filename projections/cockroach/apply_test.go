package cockroach

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/opstream/opstream/internal/pgtest"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/projectiontest"
)

var isolations = []string{"read committed", "serializable"}

func atEach(t *testing.T, test func(t *testing.T, address, isolation string)) {
	for _, isolation := range isolations {
		t.Run(isolation, func(t *testing.T) {
			test(t, pgtest.With(t, pgtest.Postgres(t), "default_transaction_isolation", isolation), isolation)
		})
	}
}

func opened(t *testing.T, address string, opts Options) *Store {
	t.Helper()
	store, err := Open(address, opts)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

func verified(t *testing.T, store projections.Store, j *projectiontest.Journal) {
	t.Helper()
	report, err := projections.Verify(t.Context(), store, j)
	if err != nil || !report.OK() || len(report.Lag) > 0 || report.Operations == 0 {
		t.Errorf("expected the tables to be what the journal says, but got %+v, %v", report, err)
	}
}

// some is a journal cut in two.
func some(t *testing.T) (j *projectiontest.Journal, halves [2]func(context.Context, *projections.Projector) error) {
	t.Helper()
	j = projectiontest.Random(21, 2, 400)
	entries, positions := j.All()
	var early []projections.Entry
	var middle []projections.Position
	for n, all := range j.Entries {
		half := all[:len(all)/2]
		early = append(early, half...)
		middle = append(middle, j.Position(int32(n), int64(all[len(all)/2].Place)))
	}
	halves[0] = func(ctx context.Context, p *projections.Projector) error { return p.Project(ctx, early, middle) }
	halves[1] = func(ctx context.Context, p *projections.Projector) error { return p.Project(ctx, entries, positions) }
	return j, halves
}

// TestCommitIsLost cuts the connection at the COMMIT of a batch, before and after the server has done it, of the first batch of
// all and of a later one.
func TestCommitIsLost(t *testing.T) {
	atEach(t, func(t *testing.T, address, _ string) {
		for _, c := range []struct {
			name    string
			cut     cut
			settled int64
		}{{"before it is done", cutBefore, 0}, {"after it is done", cutAfter, 1}} {
			for later := range 2 {
				t.Run(c.name+[]string{", first batch", ", later batch"}[later], func(t *testing.T) {
					way := newProxy(t, address)
					store := opened(t, way.url, Options{})
					if err := store.Reset(t.Context()); err != nil {
						t.Fatal(err)
					}
					j, halves := some(t)
					p := projections.NewProjector(store, 0)
					told := 0
					p.OnCommitted = func(*projections.Batch) { told++ }
					cuts := []cut{c.cut}
					if later == 1 {
						cuts = []cut{cutNever, c.cut}
					}
					way.set(func() cut {
						if len(cuts) == 0 {
							return cutNever
						}
						next := cuts[0]
						cuts = cuts[1:]
						return next
					})
					for _, project := range halves {
						if err := project(t.Context(), p); err != nil {
							t.Fatalf("expected the batch to be written in the end, but: %v", err)
						}
					}
					if way.count() != 1 || store.settled.Load() != c.settled || told != 2 {
						t.Errorf("expected one cut, %d batches found written and 2 told of, but got %d, %d and %d", c.settled, way.count(), store.settled.Load(), told)
					}
					verified(t, store, j)
				})
			}
		}
	})
}

// TestCommitIsLostAndTheDatabase: after the cut nobody is let in any more, so that Apply cannot find out. Its error must leave
// the projector so that it goes on rightly, whatever became of the batch.
func TestCommitIsLostAndTheDatabase(t *testing.T) {
	address := pgtest.Postgres(t)
	for name, c := range map[string]cut{"before it is done": cutBefore, "after it is done": cutAfter} {
		t.Run(name, func(t *testing.T) {
			way := newProxy(t, address)
			store := opened(t, way.url, Options{})
			if err := store.Reset(t.Context()); err != nil {
				t.Fatal(err)
			}
			j, halves := some(t)
			p := projections.NewProjector(store, 0)
			if err := halves[0](t.Context(), p); err != nil {
				t.Fatal(err)
			}
			way.set(func() cut {
				way.closed = true // the lock is held
				return c
			})
			err := halves[1](t.Context(), p)
			if err == nil || !strings.Contains(err.Error(), "not known whether") {
				t.Fatalf("expected to be told that it is not known, but got %v", err)
			}
			way.set(func() cut { return cutNever })
			way.shut(false)
			if err := halves[1](t.Context(), p); err != nil {
				t.Fatalf("expected the projector to go on, but: %v", err)
			}
			verified(t, store, j)
		})
	}
}

// TestUnderFire cuts a third of all COMMITs, at random, while two projectors write the same partitions.
func TestUnderFire(t *testing.T) {
	atEach(t, func(t *testing.T, address, _ string) {
		way := newProxy(t, address)
		j := projectiontest.Random(22, 4, 1500)
		dice := rand.New(rand.NewPCG(22, 1)) // the proxy's lock is held
		if err := opened(t, address, Options{}).Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		way.set(func() cut {
			if dice.IntN(3) > 0 {
				return cutNever
			}
			return cut(1 + dice.IntN(3))
		})
		var settled, raced atomic.Int64
		rivals(t, []*Store{opened(t, way.url, Options{}), opened(t, way.url, Options{})}, j, nil, &raced, &settled)
		if way.count() < 10 || settled.Load() == 0 {
			t.Errorf("expected many cuts, and batches that were found written, but got %d and %d", way.count(), settled.Load())
		}
		t.Logf("%d cuts, %d batches found written, %d lost to the other", way.count(), settled.Load(), raced.Load())
		verified(t, opened(t, address, Options{}), j)
	})
}

// rivals projects the journal by several projectors at once; of, when not nil, says which partitions each has.
func rivals(t *testing.T, stores []*Store, j *projectiontest.Journal, of [][]int32, raced, settled *atomic.Int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var all sync.WaitGroup
	begin := make(chan struct{})
	for i, store := range stores {
		all.Go(func() {
			<-begin
			p := projections.NewProjector(store, 50)
			r := rand.New(rand.NewPCG(23, 1)) // both cut the journal alike, so that they meet
			err := j.Batches(r, 12, func(entries []projections.Entry, positions []projections.Position) error {
				if of != nil {
					entries = slices.DeleteFunc(slices.Clone(entries), func(e projections.Entry) bool { return !slices.Contains(of[i], e.Partition) })
					positions = slices.DeleteFunc(slices.Clone(positions), func(at projections.Position) bool { return !slices.Contains(of[i], at.Partition) })
				}
				for ctx.Err() == nil {
					err := p.Project(ctx, entries, positions)
					var moved *projections.PositionError
					switch {
					case err == nil:
						return nil
					case errors.As(err, &moved):
						raced.Add(1)
					case !definite(err): // the way was cut while something else was asked
					default:
						return err
					}
				}
				return ctx.Err()
			})
			if err != nil {
				t.Errorf("projector %d: %v", i, err)
			}
		})
	}
	close(begin)
	all.Wait()
	for _, store := range stores {
		settled.Add(store.settled.Load())
	}
}

// TestRivals has several projectors write at once: the same partitions, some of them, and different ones, which meet in the
// counts only.
func TestRivals(t *testing.T) {
	atEach(t, func(t *testing.T, address, isolation string) {
		for _, c := range []struct {
			name string
			of   [][]int32
		}{
			{"the same partitions", nil},
			{"some of the same", [][]int32{{0, 1, 2}, {1, 2, 3}}},
			{"different ones", [][]int32{{0, 2}, {1, 3}}},
		} {
			t.Run(c.name, func(t *testing.T) {
				j := projectiontest.Random(24, 4, 1500)
				stores := []*Store{opened(t, address, Options{}), opened(t, address, Options{})}
				if err := stores[0].Reset(t.Context()); err != nil {
					t.Fatal(err)
				}
				var raced, settled atomic.Int64
				rivals(t, stores, j, c.of, &raced, &settled)
				retries := stores[0].retries.Load() + stores[1].retries.Load()
				t.Logf("%d batches lost to the other, %d transactions tried again", raced.Load(), retries)
				if c.name != "different ones" && raced.Load() == 0 {
					t.Error("expected the projectors to get into each other's way, but they never did")
				}
				if c.name == "different ones" && raced.Load() > 0 {
					t.Error("expected projectors of different partitions not to get into each other's way")
				}
				verified(t, stores[0], j)
			})
		}
	})
}

// TestConflict has a transaction of somebody else hold the row of a position while a batch begins, and then move it, touch it
// or give it up.
func TestConflict(t *testing.T) {
	atEach(t, func(t *testing.T, address, isolation string) {
		for _, c := range []struct {
			name, statement string
			commit          bool
			moved           bool
			conflict        bool // SERIALIZABLE must begin again
		}{
			{"moved", "UPDATE positions SET next = next + 1 WHERE partition = 0", true, true, true},
			{"touched", "UPDATE positions SET at = at WHERE partition = 0", true, false, true},
			{"given up", "UPDATE positions SET next = next + 1 WHERE partition = 0", false, false, false},
		} {
			t.Run(c.name, func(t *testing.T) {
				store := opened(t, address, Options{})
				if err := store.Reset(t.Context()); err != nil {
					t.Fatal(err)
				}
				j, halves := some(t)
				p := projections.NewProjector(store, 0)
				if err := halves[0](t.Context(), p); err != nil {
					t.Fatal(err)
				}
				other, err := store.pool.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer other.Rollback(t.Context())
				if _, err := other.Exec(t.Context(), c.statement); err != nil {
					t.Fatal(err)
				}
				done := make(chan error, 1)
				go func() { done <- halves[1](t.Context(), p) }()
				waitBlocked(t, store)
				before := store.retries.Load()
				if c.commit {
					err = other.Commit(t.Context())
				} else {
					err = other.Rollback(t.Context())
				}
				if err != nil {
					t.Fatal(err)
				}
				err = <-done
				var moved *projections.PositionError
				if errors.As(err, &moved) != c.moved || !c.moved && err != nil {
					t.Errorf("expected a PositionError: %v, but got %v", c.moved, err)
				}
				retries := store.retries.Load() - before
				if want := c.conflict && isolation == "serializable"; (retries > 0) != want {
					t.Errorf("expected a conflict (40001): %v, but %d transactions were tried again", want, retries)
				}
				if !c.moved {
					verified(t, store, j)
				}
			})
		}
	})
}

// waitBlocked returns when a session of this database waits for a lock.
func waitBlocked(t *testing.T, store *Store) {
	t.Helper()
	waitSessions(t, store, "wait_event_type = 'Lock'", func(n int) bool { return n > 0 })
}

// waitAlone returns when all other sessions of this database have ended, which the server does in its own time: a client that says
// goodbye does not wait for it.
func waitAlone(t *testing.T, store *Store) {
	t.Helper()
	waitSessions(t, store, "backend_type = 'client backend' AND pid <> pg_backend_pid()", func(n int) bool { return n == 0 })
}

func waitSessions(t *testing.T, store *Store, which string, enough func(n int) bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		var n int
		if err := store.pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND "+which).Scan(&n); err != nil {
			t.Fatal(err)
		}
		if enough(n) {
			return
		}
		<-tick.C
	}
}

// TestReleaseIsCommit runs a history through the transactions that CockroachDB gets, whose commit is the release of a savepoint. On
// PostgreSQL without rivals they are right too.
func TestReleaseIsCommit(t *testing.T) {
	store := opened(t, pgtest.Postgres(t), Options{Buckets: 8})
	f, err := store.ready(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.transact = transactCockroach
	projectiontest.TestHistories(t, store)
}

func TestMigrateAtOnce(t *testing.T) {
	atEach(t, func(t *testing.T, address, _ string) {
		var all sync.WaitGroup
		for range 6 {
			store := opened(t, address, Options{})
			all.Go(func() {
				if err := store.Ready(t.Context()); err != nil {
					t.Errorf("expected the tables to be made once, but: %v", err)
				}
			})
		}
		all.Wait()
		store := opened(t, address, Options{})
		rows, err := store.pool.Query(t.Context(), "SELECT version_id FROM goose_db_version ORDER BY id")
		if err != nil {
			t.Fatal(err)
		}
		versions, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range versions {
			if v != int64(i) {
				t.Fatalf("expected each migration once and in order, but got %v", versions)
			}
		}
	})
}

func TestRefusesOtherVersions(t *testing.T) {
	for _, c := range []struct{ change, want string }{
		{"INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, true)", "newer opstream"},
		{"UPDATE format SET version = version + 1", "empty database"},
	} {
		address := pgtest.Postgres(t)
		first := opened(t, address, Options{})
		if err := first.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := first.pool.Exec(t.Context(), c.change); err != nil {
			t.Fatal(err)
		}
		if err := opened(t, address, Options{}).Ready(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: expected an error that says %q, but got %v", c.change, c.want, err)
		}
	}
}

// TestDatabaseComesLater opens a store whose database cannot be reached yet.
func TestDatabaseComesLater(t *testing.T) {
	way := newProxy(t, pgtest.Postgres(t))
	way.shut(true)
	store := opened(t, way.url, Options{})
	if _, err := store.Positions(t.Context()); err == nil {
		t.Fatal("expected an error while nobody is let in")
	}
	way.shut(false)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for store.Ready(ctx) != nil { // a failure is remembered for a moment
		if !sleep(ctx, remembered/10) {
			t.Fatal("expected the store to find its database")
		}
	}
	j, halves := some(t)
	if err := halves[1](t.Context(), projections.NewProjector(store, 0)); err != nil {
		t.Fatal(err)
	}
	verified(t, store, j)
}

func TestURLs(t *testing.T) {
	for text, want := range map[string]bool{
		"postgres://h/d": true, "POSTGRESQL://h/d": true, "cockroach://h/d": true, "cockroachdb://h/d": true,
		"./tables.db": false, "sqlite://x": false, "postgres:x": false, "": false,
	} {
		if IsURL(text) != want {
			t.Errorf("%q: expected %v", text, want)
		}
	}
	for _, bad := range []string{"./tables.db", "postgres://user:hidden@host:port/d", "postgres://h/d?sslmode=perhaps"} {
		store, err := Open(bad, Options{})
		if err == nil {
			store.Close()
			t.Errorf("%q: expected an error", bad)
		} else if strings.Contains(err.Error(), "hidden") {
			t.Errorf("%q: expected the password to stay out of %v", bad, err)
		}
	}
}

// TestDatabaseMadeAnew: whoever makes the database anew, empty or from a copy that an older version has left, need not restart anybody.
func TestDatabaseMadeAnew(t *testing.T) {
	store := opened(t, pgtest.Postgres(t), Options{})
	j, halves := some(t)
	if err := halves[0](t.Context(), projections.NewProjector(store, 0)); err != nil {
		t.Fatal(err)
	}
	for name, statements := range map[string][]string{
		"empty":               {"DROP SCHEMA public CASCADE", "CREATE SCHEMA public"},
		"of an older version": {"DELETE FROM positions", "DELETE FROM operations", "DELETE FROM operation_events", "DELETE FROM rejections", "DELETE FROM counts", "DROP TABLE operation_statuses", "DELETE FROM goose_db_version WHERE version_id >= 16"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, statement := range statements {
				if _, err := store.pool.Exec(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
			p := projections.NewProjector(store, 0)
			if err := halves[1](t.Context(), p); err == nil {
				t.Error("expected to hear that tables are missing, but did not")
			}
			if err := halves[1](t.Context(), p); err != nil {
				t.Fatalf("expected the tables to be made again, but: %v", err)
			}
			verified(t, store, j)
		})
	}
}
