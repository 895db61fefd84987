package cockroach

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/cockroachdb/cockroach-go/v2/crdb"
	crdbpgx "github.com/cockroachdb/cockroach-go/v2/crdb/crdbpgxv5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// dialect is what differs between the two databases.
type dialect struct {
	name string
	// buckets over which new tables spread what only grows, see the package.
	buckets int
	// settings are those of the tables, made by whoever uses them; they are there already but for the first time. PostgreSQL writes the new
	// version of a row beside the old one, without touching any index, if there is room on the page. What is written in one batch
	// is changed in a later one as a whole, so there must be room for everything once more; what is old is cleared away as the
	// page is used, so it is only once.
	settings string
	// snapshot begins, in a transaction that has just begun, to read everything as it was at one moment. In PostgreSQL that is
	// what REPEATABLE READ is. In CockroachDB a long read may run into what others have just written, at times that it cannot
	// order with its own, and would have to begin again, which it cannot when half of it has been shown; a read of the past
	// cannot run into anything.
	snapshot string
	// transact runs a function in a transaction, as often as the database asks for it, and returns what became of the last
	// try. The function must have no other effects.
	transact func(ctx context.Context, db *Store, run func(pgx.Tx) error) error
}

// dialectOf tells the databases apart by what version() says; the version number that CockroachDB gives itself is
// PostgreSQL's.
func dialectOf(version string) dialect {
	if strings.HasPrefix(version, "CockroachDB") {
		return dialect{name: "CockroachDB", buckets: 8, snapshot: "SET TRANSACTION AS OF SYSTEM TIME '-1us'", transact: transactCockroach}
	}
	return dialect{name: "PostgreSQL", buckets: 1, settings: roomInPages, transact: transactPostgres}
}

const roomInPages = `DO $$ BEGIN
	IF NOT EXISTS (SELECT 1 FROM pg_class WHERE oid = 'operations'::regclass AND 'fillfactor=50' = ANY(reloptions)) THEN
		ALTER TABLE operations SET (fillfactor = 50);
	END IF;
END $$`

// transactCockroach leaves the retries to CockroachDB's own package. To release its savepoint is to commit.
func transactCockroach(ctx context.Context, s *Store, run func(pgx.Tx) error) error {
	tries := 0
	err := crdbpgx.ExecuteTx(crdb.WithMaxRetries(ctx, maxRetries), s.pool, pgx.TxOptions{}, func(tx pgx.Tx) error {
		if tries++; tries > 1 {
			s.retries.Add(1)
		}
		return run(tx)
	})
	var lost *crdb.AmbiguousCommitError
	if errors.As(err, &lost) || code(err) == codeUnknown {
		return &ambiguousError{err}
	}
	return err
}

// transactPostgres does not use that package, for two reasons. It takes the release of its savepoint for the commit, and so
// it does not look at what COMMIT says; in PostgreSQL that is where a conflict or a lost connection is heard of. And it
// tries again within the transaction, which in PostgreSQL still sees what it has seen before, and fails again.
func transactPostgres(ctx context.Context, s *Store, run func(pgx.Tx) error) error {
	for n := 0; ; n++ {
		err := tryPostgres(ctx, s, run)
		if c := code(err); c != codeSerialization && c != codeDeadlock || n == maxRetries {
			return err
		}
		s.retries.Add(1)
		if !sleep(ctx, backoff(n)) {
			return err
		}
	}
}

func tryPostgres(ctx context.Context, s *Store, run func(pgx.Tx) error) error {
	tx, err := s.pool.Begin(ctx)
	if err != nil {
		return err
	}
	if err := run(tx); err != nil {
		// Not with ctx: one that has ended would have to give the connection up to end the transaction.
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTime)
		defer cancel()
		_ = tx.Rollback(closing) // the connection is thrown away if it fails, and the transaction with it
		return err
	}
	err = tx.Commit(ctx)
	if err != nil && unknown(err) {
		return &ambiguousError{err}
	}
	return err
}

// maxRetries bounds how often one batch is tried again because of others.
const maxRetries = 30

// rollbackTime is how long the end of a transaction that is given up may take.
const rollbackTime = 5 * time.Second

// backoff is the wait before the try after the n-th.
func backoff(n int) time.Duration {
	most := min(time.Millisecond<<min(n, 10), 250*time.Millisecond)
	return most/2 + rand.N(most)
}

// sleep waits, and returns false when ctx ends before.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// SQLSTATEs.
const (
	codeSerialization = "40001"
	codeUnknown       = "40003" // statement_completion_unknown: CockroachDB's word for an ambiguous commit
	codeDeadlock      = "40P01"
	codeNoTable       = "42P01"
	codeNoColumn      = "42703"
	codeDuplicate     = "23505"
	codeReadOnly      = "25006"
	codeCanceled      = "57014" // statement_timeout, or somebody's pg_cancel_backend
)

// code returns the SQLSTATE of what the server has said, "" for anything else.
func code(err error) string {
	var said *pgconn.PgError
	if errors.As(err, &said) {
		return said.Code
	}
	return ""
}

// ofSession says whether a new session may be given what this one was refused.
func ofSession(err error) bool {
	c := code(err)
	return c == codeReadOnly || c == codeCanceled
}

// ofTables says whether the tables are not those that were found: they were removed, or older ones are in their place.
func ofTables(err error) bool {
	c := code(err)
	return c == codeNoTable || c == codeNoColumn
}

// unknown says whether a COMMIT that ended with this error may have been done: nothing was heard, or the server ended the
// session and not the transaction.
func unknown(err error) bool {
	var said *pgconn.PgError
	if !errors.As(err, &said) {
		return !errors.Is(err, pgx.ErrTxCommitRollback) && !errors.Is(err, pgx.ErrTxClosed)
	}
	return said.Code == codeUnknown || said.Severity == "FATAL" || said.Severity == "PANIC"
}

// ambiguousError says that a transaction may have been committed.
type ambiguousError struct{ err error }

func (e *ambiguousError) Error() string {
	return "expected to hear what became of a COMMIT, but did not: " + e.err.Error()
}

func (e *ambiguousError) Unwrap() error { return e.err }
