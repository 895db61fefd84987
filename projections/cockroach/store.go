package cockroach

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/opstream/opstream/projections"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Options are the ways in which a store can be opened.
type Options struct {
	// MaxConns is the greatest number of connections. Default: what the URL says in pool_max_conns, else 8.
	MaxConns int
	// Buckets over which new tables spread their keys. Tables that are there keep theirs. Default: 8 in CockroachDB, 1 in
	// PostgreSQL.
	Buckets int
	// Existing refuses a database without tables of this version, rather than to make them. Default: false.
	Existing bool
	// ApplyTime is how long one try of a batch may take before its connection is given up, and ReadTime is the same for a read. What
	// takes longer is given twice the time when it is tried again, and so on. Defaults: 10 s, 3 s.
	ApplyTime, ReadTime time.Duration
}

func (o Options) withDefaults() Options {
	if o.ApplyTime <= 0 {
		o.ApplyTime = 10 * time.Second
	}
	if o.ReadTime <= 0 {
		o.ReadTime = 3 * time.Second
	}
	return o
}

// connectTime is how long to wait for a connection when the URL does not say (connect_timeout).
const connectTime = 5 * time.Second

// Store is a projections.Store in CockroachDB or PostgreSQL.
type Store struct {
	opts    Options
	pool    *pgxpool.Pool
	budget  int          // of one page, see list.go
	retries atomic.Int64 // transactions that were tried again because of others
	settled atomic.Int64 // batches that were found written after their COMMIT was not answered
	renewed atomic.Int64 // when connections were last made anew because the server refused, in ns of Unix' time
	writes  patience
	reads   patience

	// What the database is, once it was reached and its tables are up to date.
	known atomic.Pointer[found]
	// Holds the right to find that out.
	finding chan *failure
}

// found is what there is to know of a database.
type found struct {
	dialect
	buckets int
}

// failure is the last one to find that out.
type failure struct {
	at  time.Time
	err error
}

var _ projections.Store = (*Store)(nil)

// IsURL says whether a text names a database for this package rather than a file: postgres://, postgresql://,
// cockroach:// or cockroachdb://.
func IsURL(text string) bool {
	scheme, _, ok := strings.Cut(text, "://")
	return ok && schemes[strings.ToLower(scheme)]
}

var schemes = map[string]bool{"postgres": true, "postgresql": true, "cockroach": true, "cockroachdb": true}

// Open takes the URL of a database. It does not go there: the first use does, and every use until one succeeds, so that a
// process can start before its database. What is wrong with the URL itself is an error at once. TLS, time limits and
// the size of the pool are parameters of the URL (sslmode, sslrootcert, connect_timeout, pool_max_conns); others are set for the
// sessions, such as default_transaction_isolation.
func Open(address string, opts Options) (*Store, error) {
	config, rest, err := parse(address)
	if err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	switch {
	case opts.MaxConns > 0:
		config.MaxConns = int32(min(opts.MaxConns, 1000))
	case !strings.Contains(rest, "pool_max_conns"):
		config.MaxConns = 8
	}
	if config.ConnConfig.ConnectTimeout == 0 {
		config.ConnConfig.ConnectTimeout = connectTime
	}
	if !strings.Contains(rest, "default_query_exec_mode") {
		// No statement has a name on the server: poolers between here and there need not know of any, and plans are made for
		// the arrays at hand, not for arrays of no known length.
		config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
	if _, ok := config.ConnConfig.RuntimeParams["application_name"]; !ok {
		config.ConnConfig.RuntimeParams["application_name"] = "opstream"
	}
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error { return prepare(ctx, conn, opts.ApplyTime) }
	config.PingTimeout = pingTime
	// detached: the pool does not connect here, and lives until Close
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return nil, fmt.Errorf("make a pool of connections: %w", err)
	}
	s := &Store{
		opts: opts, pool: pool, budget: defaultBudget, finding: make(chan *failure, 1),
		writes: patience{least: opts.ApplyTime}, reads: patience{least: opts.ReadTime},
	}
	s.finding <- &failure{}
	return s, nil
}

// CheckURL says what is wrong with a URL, and with the files that it names, as [Open] would.
func CheckURL(address string) error {
	_, _, err := parse(address)
	return err
}

func parse(address string) (config *pgxpool.Config, rest string, err error) {
	if !IsURL(address) {
		return nil, "", errors.New("expected the URL of a database, postgres://USER@HOST:PORT/DATABASE or cockroach://USER@HOST:PORT/DATABASE, but got something else")
	}
	_, rest, _ = strings.Cut(address, "://")
	if config, err = pgxpool.ParseConfig("postgresql://" + rest); err != nil {
		return nil, "", fmt.Errorf("read the URL of the database: %w", err) // the driver leaves out the password
	}
	return config, rest, nil
}

// prepare sets what a new session needs.
//
// A transaction whose client is silent for as long as one of ours never is ends, and with it its locks: the client may have gone where
// nobody told the server, who would keep every other projector from its partitions for hours.
//
// PostgreSQL is kept from collecting rows and sorting them where an index has them in order: it does that when it believes that
// there are few, and its beliefs are as old as its statistics. Where nothing else is left it still sorts, at a cost that it takes for
// enormous, and must not compile the query for that. CockroachDB, which names itself to every session, has no such things.
func prepare(ctx context.Context, conn *pgx.Conn, idle time.Duration) error {
	if _, given := conn.Config().RuntimeParams[idleTimeout]; !given {
		if _, err := conn.Exec(ctx, fmt.Sprintf("SET %s = '%dms'", idleTimeout, idle.Milliseconds())); err != nil {
			return err
		}
	}
	if conn.PgConn().ParameterStatus("crdb_version") != "" {
		return nil
	}
	_, err := conn.Exec(ctx, "SELECT set_config('enable_bitmapscan', 'off', false), set_config('enable_sort', 'off', false), set_config('jit', 'off', false)")
	return err
}

const idleTimeout = "idle_in_transaction_session_timeout"

// closeTime is how long Close waits for the farewell of connections, which takes an answer when something was under way on them.
const closeTime = 3 * time.Second

// Close closes all connections. Nothing may use the store any more. Connections on which nothing is heard are left to the end of the
// process.
func (s *Store) Close() error {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		s.pool.Close()
	}()
	select {
	case <-closed:
	case <-time.After(closeTime):
	}
	return nil
}

// remembered is how long a failure to reach the database stands for all who ask: a database that does not answer would
// else be tried by all of them, one after the other.
const remembered = 500 * time.Millisecond

// Ready says whether the database can be reached and has its tables, making them if need be. An error that time alone does
// not mend says what to do.
func (s *Store) Ready(ctx context.Context) error {
	_, err := s.ready(ctx)
	return err
}

func (s *Store) ready(ctx context.Context) (*found, error) {
	if f := s.known.Load(); f != nil {
		return f, nil
	}
	var last *failure
	select {
	case last = <-s.finding:
	case <-ctx.Done():
		return nil, fmt.Errorf("reach the database: %w", context.Cause(ctx))
	}
	defer func() { s.finding <- last }()
	if f := s.known.Load(); f != nil {
		return f, nil
	}
	if last.err != nil && time.Since(last.at) < remembered {
		return nil, last.err
	}
	f, err := s.find(ctx)
	if err != nil {
		err = fmt.Errorf("reach the database: %w", err)
		if ctx.Err() == nil { // else it is the caller's, not the database's
			last = &failure{time.Now(), err}
		}
		return nil, err
	}
	last = &failure{}
	s.known.Store(f)
	return f, nil
}

// find goes to the database and brings its tables up to date.
func (s *Store) find(ctx context.Context) (*found, error) {
	var version string
	if err := s.within(ctx, &s.reads, func(ctx context.Context) error {
		return s.pool.QueryRow(ctx, "SELECT version()").Scan(&version)
	}); err != nil {
		return nil, err
	}
	f := &found{dialect: dialectOf(version)}
	if err := s.migrate(ctx); err != nil {
		return nil, err
	}
	f.buckets = f.dialect.buckets
	if s.opts.Buckets > 0 {
		f.buckets = s.opts.Buckets
	}
	var have int64
	if err := s.within(ctx, &s.reads, func(ctx context.Context) error {
		if _, err := s.pool.Exec(ctx, "INSERT INTO format (one, version, buckets) VALUES (1, $1, $2) ON CONFLICT (one) DO NOTHING", projections.FormatVersion, f.buckets); err != nil {
			return fmt.Errorf("note the format of the tables: %w", err)
		}
		if err := s.pool.QueryRow(ctx, "SELECT version, buckets FROM format WHERE one = 1").Scan(&have, &f.buckets); err != nil {
			return fmt.Errorf("read the format of the tables: %w", err)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	if f.dialect.settings != "" && !s.opts.Existing {
		if err := s.within(ctx, &s.writes, func(ctx context.Context) error {
			_, err := s.pool.Exec(ctx, f.dialect.settings)
			return err
		}); err != nil {
			return nil, fmt.Errorf("set up the tables: %w", err)
		}
	}
	if have != projections.FormatVersion {
		return nil, fmt.Errorf("expected rows of format %#x, but these are of format %#x; give this version an empty database, its tables are made again from the journal", projections.FormatVersion, have)
	}
	return f, nil
}

// makeTime is how long it may take to bring the tables up to date, whoever does it.
const makeTime = 15 * time.Minute

// migrate brings the tables up to date, or refuses those of a newer version. Any number of processes may do it at once: they
// take turns by a lock that is a row of a table with a lease, because CockroachDB has no advisory locks.
func (s *Store) migrate(ctx context.Context) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	turns, err := lock.NewPostgresTableLocker(
		lock.WithTableLockTimeout(200*time.Millisecond, 1500), // 5 min
		lock.WithTableUnlockTimeout(200*time.Millisecond, 150),
		lock.WithTableLogger(slog.New(slog.DiscardHandler)), // what it has to say is in its errors
	)
	if err != nil {
		return fmt.Errorf("make a lock for the migrations: %w", err)
	}
	db := stdlib.OpenDB(*s.pool.Config().ConnConfig)
	defer db.Close() //nolint:errcheck // nothing hangs on its connections
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithLocker(turns), goose.WithIsolateDDL(true))
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	sources := provider.ListSources()
	want := sources[len(sources)-1].Version
	// By hand: the provider would begin to make its own table without the lock.
	var have int64
	err = s.within(ctx, &s.reads, func(ctx context.Context) error {
		return s.pool.QueryRow(ctx, "SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied").Scan(&have)
	})
	if err != nil && code(err) != codeNoTable {
		return fmt.Errorf("read the version of the tables: %w", err)
	}
	if have > want {
		return fmt.Errorf("expected tables of version %d or older, but these are of version %d, from a newer opstream; run that one, or give this one an empty database for its tables", want, have)
	}
	if have == want {
		return nil
	}
	if s.opts.Existing {
		return fmt.Errorf("expected tables of version %d, but these are of version %d (0: there are none); is it the database that the service was started with?", want, have)
	}
	// It may wait for others who make the tables.
	making, cancel := context.WithTimeout(ctx, makeTime)
	defer cancel()
	if err := up(making, provider); err != nil {
		return fmt.Errorf("bring the tables from version %d to %d: %w", have, want, err)
	}
	return nil
}

// unlockTime is how long the lock may take to be given back when the making of tables is given up. Others get it when its lease has run out.
const unlockTime = 2 * time.Second

// up is provider.Up, which gives the lock back whether its context has ended or not, and waits for an answer for ever.
func up(ctx context.Context, provider *goose.Provider) error {
	done := make(chan error, 1)
	go func() {
		_, err := provider.Up(ctx)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(unlockTime):
		return context.Cause(ctx)
	}
}

// Reset forgets everything. It is for tables that one transaction can empty; of larger ones it is quicker to drop the database.
func (s *Store) Reset(ctx context.Context) error {
	f, err := s.ready(ctx)
	if err != nil {
		return err
	}
	err = f.transact(ctx, s, func(tx pgx.Tx) error {
		// The positions first: that locks out projectors.
		for _, table := range []string{"positions", "operations", "operation_statuses", "operation_events", "rejections", "counts"} {
			if _, err := tx.Exec(ctx, "DELETE FROM "+table); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("empty the tables: %w", err)
	}
	return nil
}
