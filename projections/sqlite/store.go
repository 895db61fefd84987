package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"sync/atomic"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver named sqlite

	"github.com/opstream/opstream/projections"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Options are the ways in which a store can be opened.
type Options struct {
	// Sync makes every batch safe from a power cut before it counts as written. Default: false.
	Sync bool
	// Readers is the number of connections for queries. Default: 4.
	Readers int
	// CacheKiB is the size of the writer's page cache in KiB. Default: 65536.
	CacheKiB int
}

func (o Options) withDefaults() Options {
	if o.Readers <= 0 {
		o.Readers = 4
	}
	if o.CacheKiB <= 0 {
		o.CacheKiB = 65536
	}
	return o
}

// Store is a projections.Store in a SQLite file.
type Store struct {
	write   *sql.DB
	read    *sql.DB
	conn    *sql.Conn // the only one of write
	apply   *applier
	get     *sql.Stmt
	later   *sql.Stmt
	states  *sql.Stmt
	refused *sql.Stmt
	counts  *sql.Stmt
	byOrg   *sql.Stmt
	places  *sql.Stmt
}

var _ projections.Store = (*Store)(nil)

// memories numbers the databases in memory, which processes share by name.
var memories atomic.Int64

// Open opens the database in this file and brings its tables up to date. A database that a newer opstream has written is
// refused. The empty path is a database in memory, for tests.
func Open(ctx context.Context, path string, opts Options) (*Store, error) {
	opts = opts.withDefaults()
	sync := "normal"
	if opts.Sync {
		sync = "full"
	}
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?"
	if path == "" {
		dsn = fmt.Sprintf("file:/opstream-%d?vfs=memdb&_pragma=journal_mode(memory)", memories.Add(1))
	} else {
		dsn += "_pragma=page_size(8192)&_pragma=journal_mode(wal)"
	}
	dsn += "&_pragma=busy_timeout(5000)&_pragma=temp_store(memory)&_pragma=synchronous(" + sync + ")"
	s := &Store{}
	var err error
	if s.write, err = sql.Open("sqlite", dsn+fmt.Sprintf("&_pragma=cache_size(-%d)&_pragma=wal_autocheckpoint(4000)", opts.CacheKiB)); err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	s.write.SetMaxOpenConns(1)
	if s.read, err = sql.Open("sqlite", dsn+"&_pragma=query_only(true)"); err != nil {
		return nil, fmt.Errorf("open %s for reading: %w", path, errors.Join(err, s.write.Close()))
	}
	s.read.SetMaxOpenConns(opts.Readers)
	s.read.SetMaxIdleConns(opts.Readers)
	if err := s.prepare(ctx); err != nil {
		return nil, fmt.Errorf("open the tables in %q: %w", path, errors.Join(err, s.Close()))
	}
	return s, nil
}

func (s *Store) prepare(ctx context.Context) error {
	if err := migrate(ctx, s.write); err != nil {
		return err
	}
	var err error
	if s.conn, err = s.write.Conn(ctx); err != nil {
		return err
	}
	if err := s.checkFormat(ctx); err != nil {
		return err
	}
	for _, p := range []struct {
		to    **sql.Stmt
		query string
	}{
		{&s.get, "SELECT o.key, o.state, o.history, o.request FROM " + byID + " CROSS JOIN operations o ON o.key = i.key ORDER BY o.created DESC, o.key DESC"},
		{&s.later, "SELECT events FROM operation_events WHERE key = ? AND first >= coalesce((SELECT max(first) FROM operation_events WHERE key = ? AND first <= ?), 0) ORDER BY first"},
		{&s.states, "SELECT o.key, o.state FROM " + byID + " CROSS JOIN operations o ON o.key = i.key WHERE i.key BETWEEN ?2 AND ?3 ORDER BY i.key DESC"},
		{&s.refused, "SELECT key, at, body FROM rejections WHERE id_hash = ? ORDER BY at DESC, key DESC"},
		{&s.counts, "SELECT t.name, c.status, c.wait, c.n FROM counts c JOIN names t ON t.key = c.type WHERE c.org = CASE ?1 WHEN '' THEN 0 ELSE (SELECT key FROM names WHERE name = ?1) END"},
		{&s.byOrg, "SELECT o.name, t.name, c.status, c.wait, c.n FROM counts c JOIN names t ON t.key = c.type JOIN names o ON o.key = c.org"},
		{&s.places, "SELECT partition, next, at, chain FROM positions ORDER BY partition"},
	} {
		if *p.to, err = s.read.PrepareContext(ctx, p.query); err != nil { //nolint:sqlclosecheck // Close closes it
			return fmt.Errorf("prepare %q: %w", p.query, err)
		}
	}
	s.apply = newApplier()
	return s.conn.Raw(func(c any) error { return s.apply.prepare(ctx, c) })
}

// migrate brings the tables up to date, or refuses those of a newer version.
func migrate(ctx context.Context, db *sql.DB) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, files)
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	have, want, err := provider.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read the version of the tables: %w", err)
	}
	if have > want {
		return fmt.Errorf("expected tables of version %d or older, but these are of version %d, from a newer opstream; run that one, or give this one an empty place for its tables", want, have)
	}
	if have == want {
		return nil
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("bring the tables from version %d to %d: %w", have, want, err)
	}
	return nil
}

// checkFormat refuses rows that this program cannot read.
func (s *Store) checkFormat(ctx context.Context) error {
	var have int
	err := s.conn.QueryRowContext(ctx, "SELECT version FROM format").Scan(&have)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		_, err = s.conn.ExecContext(ctx, "INSERT INTO format (version) VALUES (?)", projections.FormatVersion)
		return err
	case err != nil:
		return fmt.Errorf("read the format of the tables: %w", err)
	case have != projections.FormatVersion:
		return fmt.Errorf("expected rows of format %#x, but these are of format %#x; remove the database, it is made again from the journal", projections.FormatVersion, have)
	}
	return nil
}

// Close closes all connections. Nothing may use the store any more.
func (s *Store) Close() error {
	var errs []error
	for _, stmt := range []*sql.Stmt{s.get, s.later, s.states, s.refused, s.counts, s.byOrg, s.places} {
		if stmt != nil {
			errs = append(errs, stmt.Close())
		}
	}
	if s.conn != nil {
		if s.apply != nil {
			errs = append(errs, s.conn.Raw(func(any) error { return s.apply.close() }))
		}
		errs = append(errs, s.conn.Close())
	}
	errs = append(errs, s.read.Close(), s.write.Close())
	return errors.Join(errs...)
}

// Reset forgets everything.
func (s *Store) Reset(ctx context.Context) error {
	var b strings.Builder
	b.WriteString("BEGIN IMMEDIATE;")
	for _, table := range []string{"operations", "ids", "ids_new", "operation_events", "rejections", "counts", "names", "positions"} {
		b.WriteString("DELETE FROM " + table + ";")
	}
	b.WriteString("COMMIT;")
	if _, err := s.conn.ExecContext(ctx, b.String()); err != nil {
		_, back := s.conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		return fmt.Errorf("empty the tables: %w", errors.Join(err, back))
	}
	clear(s.apply.names)
	s.apply.fresh = 0
	return nil
}
