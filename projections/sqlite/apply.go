package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/safeguard"
	"github.com/opstream/opstream/projections"
)

// maxNames bounds the names that are remembered; what is forgotten is read again.
const maxNames = 65536

// applier writes batches through the driver itself: package database/sql costs as much again for each argument.
type applier struct {
	names map[string]int64
	conn  driver.ConnPrepareContext
	all   []driver.Stmt

	begin, commit, rollback       *statement
	insertName, selectName        *statement
	firstPosition, movePosition   *statement
	selectPosition                *statement
	deleteOperation, deleteEvents *statement
	operations, events, refused   *bulk
	count, uncount                *statement
	deleteID, deleteNewID         *statement
	sizeNew, sizeAll              *statement
	copyNew, clearNew             *statement
	ids                           *bulk

	fresh  int64 // ids in ids_new; less than 0: not known
	minNew int64

	buf    []byte
	totals map[countKey]int64
}

type countKey struct {
	kind   int64
	status operation.Status
	wait   operation.Wait
}

func newApplier() *applier {
	return &applier{names: map[string]int64{}, totals: map[countKey]int64{}, fresh: -1, minNew: minNew}
}

const (
	insertOperations = "INSERT INTO operations (key, org, type, status, wait, created, modified, id_hash, token, correlation, state, history, request) VALUES "
	// The request and the first history stay unless there is another.
	updateOperations = " ON CONFLICT (key) DO UPDATE SET status = excluded.status, wait = excluded.wait, modified = excluded.modified, state = excluded.state, request = coalesce(nullif(excluded.request, zeroblob(0)), request)"
)

func (a *applier) prepare(ctx context.Context, conn any) error {
	c, ok := conn.(driver.ConnPrepareContext)
	if !ok {
		return fmt.Errorf("expected a connection of the driver modernc.org/sqlite, but got %T", conn)
	}
	a.conn = c
	for _, p := range []struct {
		to    **statement
		query string
	}{
		{&a.begin, "BEGIN IMMEDIATE"},
		{&a.commit, "COMMIT"},
		{&a.rollback, "ROLLBACK"},
		{&a.insertName, "INSERT INTO names (name) VALUES (?)"},
		{&a.selectName, "SELECT key FROM names WHERE name = ?"},
		{&a.firstPosition, "INSERT INTO positions (next, at, chain, partition) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"},
		{&a.movePosition, "UPDATE positions SET next = ?, at = ?, chain = ? WHERE partition = ? AND next = ?"},
		{&a.selectPosition, "SELECT next FROM positions WHERE partition = ?"},
		{&a.deleteID, "DELETE FROM ids WHERE (id_hash, key) IN (SELECT id_hash, key FROM operations WHERE key = ?)"},
		{&a.deleteNewID, "DELETE FROM ids_new WHERE (id_hash, key) IN (SELECT id_hash, key FROM operations WHERE key = ?)"},
		{&a.sizeNew, "SELECT count(*) FROM ids_new"},
		{&a.sizeAll, "SELECT coalesce(sum(n), 0) FROM counts WHERE org = 0"},
		{&a.copyNew, "INSERT INTO ids SELECT id_hash, key FROM ids_new ORDER BY id_hash, key"},
		{&a.clearNew, "DELETE FROM ids_new"},
		{&a.deleteOperation, "DELETE FROM operations WHERE key = ?"},
		{&a.deleteEvents, "DELETE FROM operation_events WHERE key = ?"},
		{&a.count, "INSERT INTO counts (org, type, status, wait, n) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n"},
		{&a.uncount, "DELETE FROM counts WHERE org = ? AND type = ? AND status = ? AND wait = ? AND n = 0"},
	} {
		var err error
		if *p.to, err = a.statement(ctx, p.query); err != nil {
			return err
		}
	}
	for _, p := range []struct {
		to     **bulk
		insert string
		cols   int
		after  string
	}{
		{&a.operations, insertOperations, 13, updateOperations},
		{&a.ids, "INSERT INTO ids_new (id_hash, key) VALUES ", 2, ""},
		{&a.events, "INSERT INTO operation_events (key, first, events) VALUES ", 3, ""},
		{&a.refused, "INSERT INTO rejections (key, id_hash, at, body) VALUES ", 4, ""},
	} {
		row := "(" + strings.Repeat("?, ", p.cols-1) + "?)"
		one, err := a.statement(ctx, p.insert+row+p.after)
		if err != nil {
			return err
		}
		many, err := a.statement(ctx, p.insert+strings.Repeat(row+", ", bulkRows-1)+row+p.after)
		if err != nil {
			return err
		}
		*p.to = &bulk{cols: p.cols, one: one, many: many}
	}
	return nil
}

func (a *applier) statement(ctx context.Context, query string) (*statement, error) {
	s, err := a.conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("prepare %.80q: %w", query, err)
	}
	a.all = append(a.all, s)
	exec, ok := s.(driver.StmtExecContext)
	if !ok {
		return nil, fmt.Errorf("expected a statement that takes a context, but got %T", s)
	}
	rows, ok := s.(driver.StmtQueryContext)
	if !ok {
		return nil, fmt.Errorf("expected a query that takes a context, but got %T", s)
	}
	return &statement{exec: exec, query: rows}, nil
}

func (a *applier) close() error {
	var errs []error
	for _, s := range a.all {
		errs = append(errs, s.Close())
	}
	a.all = nil
	return errors.Join(errs...)
}

// statement is a prepared statement with room for its arguments.
type statement struct {
	exec  driver.StmtExecContext
	query driver.StmtQueryContext
	args  []driver.NamedValue
}

func (s *statement) set(args ...driver.Value) {
	s.args = s.args[:0]
	for i, v := range args {
		s.args = append(s.args, driver.NamedValue{Ordinal: i + 1, Value: v})
	}
}

func (s *statement) run(ctx context.Context, args ...driver.Value) (int64, error) {
	s.set(args...)
	r, err := s.exec.ExecContext(ctx, s.args)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// one returns the first column of the first row, nil if there is none.
func (s *statement) one(ctx context.Context, args ...driver.Value) (driver.Value, error) {
	s.set(args...)
	rows, err := s.query.QueryContext(ctx, s.args)
	if err != nil {
		return nil, err
	}
	into := make([]driver.Value, len(rows.Columns()))
	err = rows.Next(into)
	if errors.Is(err, io.EOF) {
		return nil, rows.Close()
	}
	if err != nil {
		return nil, errors.Join(err, rows.Close())
	}
	return into[0], rows.Close()
}

// bulkRows is how many rows one statement inserts.
const bulkRows = 32

// bulk inserts rows, many with one statement.
type bulk struct {
	cols      int
	one, many *statement
	args      []driver.NamedValue
}

// add takes a row; it must not change until flush.
func (b *bulk) add(ctx context.Context, values ...driver.Value) error {
	for _, v := range values {
		b.args = append(b.args, driver.NamedValue{Ordinal: len(b.args) + 1, Value: v})
	}
	if len(b.args) < b.cols*bulkRows {
		return nil
	}
	_, err := b.many.exec.ExecContext(ctx, b.args)
	clear(b.args)
	b.args = b.args[:0]
	return err
}

func (b *bulk) flush(ctx context.Context) error {
	defer func() {
		clear(b.args)
		b.args = b.args[:0]
	}()
	for row := b.args; len(row) > 0; row = row[b.cols:] {
		for i := range row[:b.cols] {
			row[i].Ordinal = i + 1
		}
		if _, err := b.one.exec.ExecContext(ctx, row[:b.cols]); err != nil {
			return err
		}
	}
	return nil
}

// Apply writes a batch in one transaction.
func (s *Store) Apply(ctx context.Context, batch *projections.Batch) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if safeguard.Split && len(batch.Steps) > 0 {
		rest := *batch
		rest.Steps = nil
		if err := s.Apply(ctx, &rest); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond): // long enough to fall in between
		}
		batch = &projections.Batch{Steps: batch.Steps}
	}
	// The driver watches every statement of a context that can end, with a goroutine each; a batch is short enough to finish.
	ctx = context.WithoutCancel(ctx)
	var failed error
	err := s.conn.Raw(func(any) error {
		failed = s.apply.write(ctx, batch)
		return nil
	})
	return errors.Join(failed, err)
}

func (a *applier) write(ctx context.Context, batch *projections.Batch) error {
	if _, err := a.begin.run(ctx); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	err := a.rows(ctx, batch)
	if err == nil {
		_, err = a.commit.run(ctx)
	}
	if err != nil {
		clear(a.names) // some may not be there any more
		a.fresh = -1
		for _, b := range []*bulk{a.operations, a.ids, a.events, a.refused} {
			b.args = b.args[:0]
		}
		if _, back := a.rollback.run(ctx); back != nil {
			err = errors.Join(err, fmt.Errorf("roll back: %w", back))
		}
	}
	return err
}

func (a *applier) rows(ctx context.Context, batch *projections.Batch) error {
	for _, step := range batch.Steps {
		if err := a.step(ctx, step); err != nil {
			return err
		}
	}
	for _, key := range batch.Deleted {
		// The operation comes last: it says under which hash its id is found.
		for _, s := range []*statement{a.deleteID, a.deleteNewID, a.deleteEvents, a.deleteOperation} {
			if _, err := s.run(ctx, int64(key)); err != nil {
				return fmt.Errorf("delete operation %v: %w", key, err)
			}
		}
	}
	if a.fresh < 0 {
		if err := a.countIDs(ctx); err != nil {
			return err
		}
	}
	if err := a.changes(ctx, batch.Changes); err != nil {
		return err
	}
	a.buf = a.buf[:0]
	for i := range batch.Rejections {
		r := &batch.Rejections[i]
		body := projections.AppendRejection(nil, r)
		if err := a.refused.add(ctx, int64(projections.KeyOf(r.Partition, r.Place)), hashID(r.Org, r.ID), int64(r.At), body); err != nil {
			return fmt.Errorf("write rejections: %w", err)
		}
	}
	if err := a.refused.flush(ctx); err != nil {
		return fmt.Errorf("write rejections: %w", err)
	}
	return a.addCounts(ctx, batch.Counts)
}

// step moves a position, if it stands where the batch begins.
func (a *applier) step(ctx context.Context, step projections.Step) error {
	to := step.To
	var n int64
	var err error
	if step.From == 0 {
		n, err = a.firstPosition.run(ctx, to.Next, int64(to.At), to.Chain, int64(to.Partition))
	} else {
		n, err = a.movePosition.run(ctx, to.Next, int64(to.At), to.Chain, int64(to.Partition), step.From)
	}
	if err != nil {
		return fmt.Errorf("move partition %d to offset %d: %w", to.Partition, to.Next, err)
	}
	if n == 1 {
		return nil
	}
	v, err := a.selectPosition.one(ctx, int64(to.Partition))
	if err != nil {
		return fmt.Errorf("read the position of partition %d: %w", to.Partition, err)
	}
	have, _ := v.(int64) // none: 0
	return &projections.PositionError{Partition: to.Partition, Have: have, Want: step.From}
}

// empty is what an update has for a request when the store's stays.
var empty = []byte{}

func (a *applier) changes(ctx context.Context, changes []projections.Change) error {
	a.buf = a.buf[:0]
	for i := range changes {
		c := &changes[i]
		if !c.New && len(c.History) > 0 {
			if err := a.events.add(ctx, int64(c.Row.Key()), int64(c.First), c.History); err != nil {
				return fmt.Errorf("write histories: %w", err)
			}
		}
		if !c.Written {
			continue
		}
		s := &c.Row.State
		org, err := a.name(ctx, s.Org)
		if err != nil {
			return err
		}
		kind, err := a.name(ctx, s.Request.Type)
		if err != nil {
			return err
		}
		var token, correlation driver.Value
		if s.Request.DependencyToken != "" {
			token = hash(s.Request.DependencyToken)
		}
		if x := s.Request.Context; x != nil && x.CorrelationID != "" {
			correlation = hash(x.CorrelationID)
		}
		id := hashID(s.Org, s.ID)
		if c.New {
			a.fresh++
			if err := a.ids.add(ctx, id, int64(c.Row.Key())); err != nil {
				return fmt.Errorf("write ids: %w", err)
			}
		}
		history, request := empty, c.Request
		if c.New && len(c.History) > 0 {
			history = c.History
		}
		if request == nil {
			request = empty
		}
		from := len(a.buf)
		a.buf = projections.AppendState(a.buf, s) // may move: what was added before keeps the old memory
		state := a.buf[from:len(a.buf):len(a.buf)]
		if err := a.operations.add(ctx, int64(c.Row.Key()), org, kind, int64(s.Status), int64(s.Wait()), int64(s.CreatedAt),
			int64(s.ModifiedAt), id, token, correlation, state, history, request); err != nil {
			return fmt.Errorf("write operations: %w", err)
		}
		if len(a.operations.args) == 0 {
			a.buf = a.buf[:0] // all written
		}
	}
	if err := a.operations.flush(ctx); err != nil {
		return fmt.Errorf("write operations: %w", err)
	}
	if err := a.events.flush(ctx); err != nil {
		return fmt.Errorf("write histories: %w", err)
	}
	if err := a.ids.flush(ctx); err != nil {
		return fmt.Errorf("write ids: %w", err)
	}
	return a.moveIDs(ctx)
}

// name returns the number of an organization or a type.
func (a *applier) name(ctx context.Context, name string) (int64, error) {
	if key, ok := a.names[name]; ok {
		return key, nil
	}
	v, err := a.selectName.one(ctx, name)
	if err != nil {
		return 0, fmt.Errorf("look up the name %q: %w", name, err)
	}
	key, ok := v.(int64)
	if !ok {
		a.insertName.set(name)
		r, err := a.insertName.exec.ExecContext(ctx, a.insertName.args)
		if err != nil {
			return 0, fmt.Errorf("write the name %q: %w", name, err)
		}
		if key, err = r.LastInsertId(); err != nil {
			return 0, fmt.Errorf("write the name %q: %w", name, err)
		}
	}
	if len(a.names) >= maxNames {
		clear(a.names)
	}
	a.names[name] = key
	return key, nil
}

func (a *applier) addCounts(ctx context.Context, counts []projections.Count) error {
	clear(a.totals)
	for _, c := range counts {
		org, err := a.name(ctx, c.Organization)
		if err != nil {
			return err
		}
		kind, err := a.name(ctx, c.Type)
		if err != nil {
			return err
		}
		k := countKey{kind, c.Status, c.Wait}
		a.totals[k] += c.N
		if err := a.addCount(ctx, org, k, c.N); err != nil {
			return err
		}
	}
	for k, n := range a.totals {
		if err := a.addCount(ctx, 0, k, n); err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) addCount(ctx context.Context, org int64, k countKey, n int64) error {
	if n == 0 {
		return nil
	}
	if _, err := a.count.run(ctx, org, k.kind, int64(k.status), int64(k.wait), n); err != nil {
		return fmt.Errorf("count: %w", err)
	}
	if n < 0 {
		if _, err := a.uncount.run(ctx, org, k.kind, int64(k.status), int64(k.wait)); err != nil {
			return fmt.Errorf("count: %w", err)
		}
	}
	return nil
}
