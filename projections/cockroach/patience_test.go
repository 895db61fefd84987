package cockroach

import (
	"context"
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/opstream/opstream/internal/faultproxy"
	"github.com/opstream/opstream/internal/pgtest"
	"github.com/opstream/opstream/projections"
)

// TestStrandedInATransaction: the way to the database is lost without a word in the middle of a batch, before or after its COMMIT, so
// that the server keeps the transaction and its locks. The batch is written all the same, once, and before long.
func TestStrandedInATransaction(t *testing.T) {
	address := pgtest.Postgres(t)
	way := newProxy(t, address)
	store := opened(t, way.url, Options{ApplyTime: time.Second, ReadTime: time.Second})
	if err := store.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	j, halves := some(t)
	p := projections.NewProjector(store, 0)
	patiently(t, p, halves[0]) // a second is not much on a busy machine
	first := true
	way.set(func() cut {
		if first {
			first = false
			return cutSilent
		}
		return cutNever
	})
	began := time.Now()
	if err := halves[1](t.Context(), p); err != nil {
		t.Fatalf("expected the batch to be written over another connection, but: %v", err)
	}
	if took := time.Since(began); took > 10*time.Second || way.count() != 1 {
		t.Errorf("expected one connection to be stranded and the batch to be written within some seconds, but %d were, and it took %s", way.count(), took)
	}
	verified(t, store, j)
	began = time.Now()
	if err := store.Close(); err != nil || time.Since(began) > closeTime+2*time.Second {
		t.Errorf("expected the store to close, but it took %s: %v", time.Since(began), err)
	}
}

// behind stands before the server of a database, and returns the address of the same database through it.
func behind(t *testing.T, address string) (way *faultproxy.Proxy, through string) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	if way, err = faultproxy.Listen(u.Host); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(way.Close)
	u.Host = way.Address()
	return way, u.String()
}

// TestRefusedAndPutRight: an operator has the database refuse what the store needs of it, by settings that sessions take when they begin,
// and takes them back. The store, whose connections are from before that, goes on soon and is not restarted.
func TestRefusedAndPutRight(t *testing.T) {
	for setting, lock := range map[string]string{
		"default_transaction_read_only = on": "SELECT 1",
		"statement_timeout = '1ms'":          "LOCK TABLE positions IN ACCESS EXCLUSIVE MODE", // so that it surely takes longer
	} {
		t.Run(setting, func(t *testing.T) {
			address := pgtest.Postgres(t)
			conn, err := pgx.Connect(t.Context(), address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close(context.WithoutCancel(t.Context())) })
			if conn.PgConn().ParameterStatus("crdb_version") != "" {
				t.Skip("CockroachDB has settings of its own")
			}
			admin := func(statement string) {
				t.Helper()
				if _, err := conn.Exec(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
			admin("SET statement_timeout = 0; SET default_transaction_read_only = off")
			var name string
			if err := conn.QueryRow(t.Context(), "SELECT quote_ident(current_database())").Scan(&name); err != nil {
				t.Fatal(err)
			}
			store := opened(t, address, Options{})
			if err := store.Reset(t.Context()); err != nil {
				t.Fatal(err)
			}
			j, halves := some(t)
			p := projections.NewProjector(store, 0)
			if err := halves[0](t.Context(), p); err != nil {
				t.Fatal(err)
			}

			admin("ALTER DATABASE " + name + " SET " + setting)
			store.pool.Reset() // as when the server was restarted with that
			admin("BEGIN; " + lock)
			if err := halves[1](t.Context(), p); err == nil {
				t.Fatalf("expected the batch to be refused under %s, but it was written", setting)
			}
			admin("COMMIT; ALTER DATABASE " + name + " RESET ALL")
			for deadline := time.Now().Add(20 * time.Second); ; {
				err := halves[1](t.Context(), p)
				if err == nil {
					break
				}
				if time.Now().After(deadline) || !sleep(t.Context(), renewEvery/4) {
					t.Fatalf("expected the batch to be written once the setting is gone, but: %v", err)
				}
			}
			verified(t, store, j)
		})
	}
}

// TestStrandedReads: reads are answered over new connections.
func TestStrandedReads(t *testing.T) {
	way, address := behind(t, pgtest.Postgres(t))
	store := opened(t, address, Options{ReadTime: time.Second})
	if _, err := store.Positions(t.Context()); err != nil {
		t.Fatal(err)
	}
	if way.Strand() == 0 {
		t.Fatal("expected connections to strand")
	}
	if _, err := store.Positions(t.Context()); err != nil {
		t.Errorf("expected a read to be answered over another connection, but: %v", err)
	}
}

// TestStrandedWhileTablesAreMade: who gives up while the database is silent is not held up by the lock that he holds.
func TestStrandedWhileTablesAreMade(t *testing.T) {
	way, address := behind(t, pgtest.Postgres(t))
	plain := opened(t, address, Options{})
	if err := plain.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	exec(t, plain, "DELETE FROM goose_db_version WHERE version_id >= 15")
	tx, err := plain.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "LOCK TABLE positions IN ACCESS SHARE MODE"); err != nil { // nobody alters it now
		t.Fatal(err)
	}
	store := opened(t, address, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	made := make(chan error, 1)
	go func() { made <- store.Ready(ctx) }()
	waitBlocked(t, plain)
	way.Stall(faultproxy.Both)
	cancel()
	began := time.Now()
	select {
	case err := <-made:
		if err == nil {
			t.Error("expected to hear that the tables were not made")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("expected the making of tables to end when it is given up, but it did not within 30 s")
	}
	if took := time.Since(began); took > unlockTime+3*time.Second {
		t.Errorf("expected it to end within %s, but it took %s", unlockTime, took)
	}
}

// TestSlowDatabase answers everything, but not in the time that is given first. Every batch is written in the end.
func TestSlowDatabase(t *testing.T) {
	// The server's own patience is not what is tested: from where it stands, the way is a part of the client's silence.
	address := pgtest.With(t, pgtest.Postgres(t), idleTimeout, "10000")
	plain := opened(t, address, Options{}) // which nothing slows down
	if err := plain.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	way, slow := behind(t, address)
	store := opened(t, slow, Options{ApplyTime: 120 * time.Millisecond, ReadTime: 120 * time.Millisecond})
	way.Delay(60 * time.Millisecond)
	j, halves := some(t)
	p := projections.NewProjector(store, 0)
	tries := 0
	for _, project := range halves {
		tries += patiently(t, p, project)
	}
	t.Logf("%d tries; a batch may take %s now", tries, store.writes.now(time.Now()))
	if tries == len(halves) {
		t.Error("expected batches to be given up at first")
	}
	verified(t, plain, j)
}

// patiently projects as a projector does: what the database did not answer in time is tried again. It returns how many tries that took.
func patiently(t *testing.T, p *projections.Projector, project func(context.Context, *projections.Projector) error) (tries int) {
	t.Helper()
	for began := time.Now(); ; {
		err := project(t.Context(), p)
		if tries++; err == nil {
			return tries
		}
		if !errors.Is(err, errSilent) || time.Since(began) > time.Minute {
			t.Fatalf("try %d: expected nothing but a slow database, and not for ever, but: %v", tries, err)
		}
		sleep(t.Context(), backoff(8))
	}
}

// TestPatience: it grows when it must, stays while it is needed, and goes.
func TestPatience(t *testing.T) {
	p := patience{least: 10 * time.Second}
	at := time.Now()
	expect := func(want time.Duration) {
		t.Helper()
		if got := p.now(at); got != want {
			t.Errorf("expected %s, but got %s", want, got)
		}
	}
	expect(10 * time.Second)
	if next := p.lost(10*time.Second, at); next != 20*time.Second {
		t.Errorf("expected twice as much for the next, but got %s", next)
	}
	p.lost(10*time.Second, at) // another that began before that
	expect(20 * time.Second)
	at = at.Add(patienceStays)
	p.took(6*time.Second, at)
	at = at.Add(patienceStays)
	p.took(time.Second, at)
	expect(20 * time.Second)
	at = at.Add(time.Second)
	expect(10 * time.Second)
	for range 20 {
		p.lost(p.now(at), at)
	}
	expect(patienceMost)
}
