package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/projections"
)

func limited(limit int) int { return min(max(limit, 1), projections.MaxLimit) }

// Get returns the latest operation of this name.
func (s *Store) Get(ctx context.Context, org string, id operation.ID) (projections.Row, error) {
	row, _, err := s.find(ctx, org, id)
	return row, err
}

// find also returns the history that stands in the row.
func (s *Store) find(ctx context.Context, org string, id operation.ID) (projections.Row, []byte, error) {
	rows, err := s.get.QueryContext(ctx, hashID(org, id))
	if err != nil {
		return projections.Row{}, nil, fmt.Errorf("read operation %q of organization %q: %w", id, org, err)
	}
	defer rows.Close()
	for rows.Next() {
		var key int64
		var state, history, request []byte
		if err := rows.Scan(&key, &state, &history, &request); err != nil {
			return projections.Row{}, nil, fmt.Errorf("read operation %q of organization %q: %w", id, org, err)
		}
		row := projections.Row{Partition: projections.Key(key).Partition()}
		if err := projections.DecodeState(state, &row.State); err != nil {
			return row, nil, err
		}
		if row.Org != org || row.ID != id {
			continue // the same hash
		}
		row.Request.Raw = request
		return row, history, nil
	}
	if err := rows.Err(); err != nil {
		return projections.Row{}, nil, fmt.Errorf("read operation %q of organization %q: %w", id, org, err)
	}
	return projections.Row{}, nil, projections.ErrNotFound
}

// History returns events of the latest operation of this name.
func (s *Store) History(ctx context.Context, org string, id operation.ID, after operation.Place, limit int) ([]projections.Entry, error) {
	limit = limited(limit)
	row, history, err := s.find(ctx, org, id)
	if err != nil {
		return nil, err
	}
	row.Request.Raw = nil
	out, err := projections.DecodeHistory(nil, history, &row, after, limit)
	if err != nil || len(out) == limit {
		return out, err
	}
	rows, err := s.later.QueryContext(ctx, int64(row.Key()), int64(row.Key()), int64(after))
	if err != nil {
		return nil, fmt.Errorf("read the history of operation %q of organization %q: %w", id, org, err)
	}
	defer rows.Close()
	for rows.Next() && len(out) < limit {
		var events sql.RawBytes
		if err := rows.Scan(&events); err != nil {
			return nil, fmt.Errorf("read the history of operation %q of organization %q: %w", id, org, err)
		}
		if out, err = projections.DecodeHistory(out, events, &row, after, limit); err != nil {
			return nil, err
		}
	}
	return out, rows.Err()
}

// States returns the latest operations of these names in their partitions.
func (s *Store) States(ctx context.Context, refs []projections.Ref) ([]projections.Row, error) {
	var out []projections.Row
	for _, ref := range refs {
		row, err := s.state(ctx, ref)
		if err != nil {
			return nil, fmt.Errorf("read operation %q of organization %q: %w", ref.ID, ref.Org, err)
		}
		if row.Request != nil {
			out = append(out, row)
		}
	}
	return out, nil
}

func (s *Store) state(ctx context.Context, ref projections.Ref) (row projections.Row, err error) {
	rows, err := s.states.QueryContext(ctx, hashID(ref.Org, ref.ID),
		int64(projections.KeyOf(ref.Partition, 0)), int64(projections.KeyOf(ref.Partition, projections.MaxPlace)))
	if err != nil {
		return row, err
	}
	defer rows.Close()
	for rows.Next() {
		var key int64
		var state sql.RawBytes
		if err := rows.Scan(&key, &state); err != nil {
			return row, err
		}
		if err := projections.DecodeState(state, &row.State); err != nil {
			return projections.Row{}, err
		}
		if row.Org == ref.Org && row.ID == ref.ID {
			row.Partition = ref.Partition
			return row, nil
		}
		row = projections.Row{}
	}
	return row, rows.Err()
}

// Rejections returns refused commands about an id without an operation.
func (s *Store) Rejections(ctx context.Context, org string, id operation.ID, limit int) ([]projections.Rejection, error) {
	rows, err := s.refused.QueryContext(ctx, hashID(org, id))
	if err != nil {
		return nil, fmt.Errorf("read rejections about %q of organization %q: %w", id, org, err)
	}
	defer rows.Close()
	var out []projections.Rejection
	for rows.Next() && len(out) < limited(limit) {
		r, err := scanRejection(rows)
		if err != nil {
			return nil, err
		}
		if r.Org == org && r.ID == id {
			out = append(out, r)
		}
	}
	return out, rows.Err()
}

// scanRejection reads key, at and body, and what comes behind them.
func scanRejection(rows *sql.Rows, more ...any) (r projections.Rejection, err error) {
	var key, at int64
	var body sql.RawBytes
	if err := rows.Scan(append([]any{&key, &at, &body}, more...)...); err != nil {
		return r, fmt.Errorf("read a rejection: %w", err)
	}
	r.Partition, r.Place, r.At = projections.Key(key).Partition(), projections.Key(key).Place(), operation.Time(at)
	return r, projections.DecodeRejection(body, &r)
}

// Counts returns counts that are kept as rows change.
func (s *Store) Counts(ctx context.Context, filter projections.CountFilter) ([]projections.Count, error) {
	if filter.PerOrganization && filter.Organization == "" {
		return scanCounts(s.byOrg.QueryContext(ctx))
	}
	out, err := scanCounts(s.counts.QueryContext(ctx, filter.Organization))
	for i := range out {
		out[i].Organization = filter.Organization
	}
	return out, err
}

// scanCounts reads counts whose columns may begin with an organization.
func scanCounts(rows *sql.Rows, err error) ([]projections.Count, error) {
	if err != nil {
		return nil, fmt.Errorf("read counts: %w", err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return nil, fmt.Errorf("read counts: %w", err)
	}
	var out []projections.Count
	for rows.Next() {
		var c projections.Count
		into := []any{&c.Organization, &c.Type, &c.Status, &c.Wait, &c.N}
		if err := rows.Scan(into[len(into)-len(columns):]...); err != nil {
			return nil, fmt.Errorf("read counts: %w", err)
		}
		out = append(out, c)
	}
	return out, rows.Err()
}

// Positions returns how far the tables are.
func (s *Store) Positions(ctx context.Context) ([]projections.Position, error) {
	rows, err := s.places.QueryContext(ctx)
	return scanPositions(rows, err)
}

func scanPositions(rows *sql.Rows, err error) ([]projections.Position, error) {
	if err != nil {
		return nil, fmt.Errorf("read positions: %w", err)
	}
	defer rows.Close()
	var out []projections.Position
	for rows.Next() {
		var p projections.Position
		if err := rows.Scan(&p.Partition, &p.Next, &p.At, &p.Chain); err != nil {
			return nil, fmt.Errorf("read positions: %w", err)
		}
		out = append(out, p)
	}
	return out, rows.Err()
}

// budget is how many rows one page looks at: a filter that hardly anything passes gives short pages, not slow ones.
var budget = 20_000 // a variable for the tests

// List walks along the index that leaves the fewest rows, and checks the rest of the filter row by row.
func (s *Store) List(ctx context.Context, filter projections.Filter, order projections.Order, cursor string, limit int) (projections.Page, error) {
	var after *projections.Mark
	if cursor != "" {
		m, err := projections.ParseCursor(cursor, &filter, order)
		if err != nil {
			return projections.Page{}, err
		}
		after = &m
	}
	tx, err := s.read.BeginTx(ctx, nil)
	if err != nil {
		return projections.Page{}, fmt.Errorf("list operations: %w", err)
	}
	defer tx.Rollback()
	page, err := list(ctx, tx, &filter, order, after, limited(limit))
	if err != nil {
		return projections.Page{}, fmt.Errorf("list operations: %w", err)
	}
	return page, nil
}

func list(ctx context.Context, tx *sql.Tx, filter *projections.Filter, order projections.Order, after *projections.Mark, limit int) (projections.Page, error) {
	var page projections.Page
	w, err := newWalk(ctx, tx, filter)
	if err != nil || w.empty {
		return page, err
	}
	query, args := w.sql(order, after, budget+1)
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return page, err
	}
	defer rows.Close() // for the ways out before its end
	var keys []int64
	var last projections.Mark
	more := false
	for seen := 0; rows.Next(); seen++ {
		if len(keys) == limit || seen == budget {
			more = true
			break
		}
		var r candidate
		if err := rows.Scan(&r.key, &r.org, &r.kind, &r.status, &r.wait, &r.created, &r.modified, &r.token, &r.correlation); err != nil {
			return page, err
		}
		last = projections.Mark{Created: operation.Time(r.created), Key: projections.Key(r.key)}
		if w.passes(&r) {
			keys = append(keys, r.key)
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return page, err
	}
	if more {
		page.Next = projections.Cursor(last, filter, order)
	}
	if len(keys) == 0 {
		return page, nil
	}
	page.Rows = make([]projections.Row, 0, len(keys))
	read, err := tx.PrepareContext(ctx, "SELECT state FROM operations WHERE key = ?")
	if err != nil {
		return page, err
	}
	defer read.Close()
	for _, key := range keys {
		row := projections.Row{Partition: projections.Key(key).Partition()}
		var state []byte
		if err := read.QueryRowContext(ctx, key).Scan(&state); err != nil {
			return page, err
		}
		if err := projections.DecodeState(state, &row.State); err != nil {
			return page, err
		}
		if sameTexts(filter, &row) {
			page.Rows = append(page.Rows, row)
		}
	}
	return page, nil
}

// sameTexts compares what the index only has a hash of.
func sameTexts(f *projections.Filter, row *projections.Row) bool {
	if f.DependencyToken != "" && row.Request.DependencyToken != f.DependencyToken {
		return false
	}
	return f.CorrelationID == "" || row.Request.Context != nil && row.Request.Context.CorrelationID == f.CorrelationID
}

// candidate is what a walk sees of a row.
type candidate struct {
	key, org, kind, status, wait, created, modified int64
	token, correlation                              sql.NullInt64
}

// walk is a way to the rows of a filter.
type walk struct {
	filter *projections.Filter
	empty  bool // nothing can match

	org                int64
	kinds              []int64
	token, correlation int64

	index string
	on    []condition // one walk for each, merged in order; none: over everything
}

type condition struct {
	column string
	value  int64
	extra  string
}

const succeeded = int64(operation.StatusSucceeded)

func newWalk(ctx context.Context, tx *sql.Tx, f *projections.Filter) (*walk, error) {
	w := &walk{filter: f, index: "operations_by_created"}
	names := make(map[string]int64, 1+len(f.Types))
	for _, name := range append(slices.Clone(f.Types), f.Organization) {
		var key int64
		err := tx.QueryRowContext(ctx, "SELECT key FROM names WHERE name = ?", name).Scan(&key)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return nil, err
		}
		if err == nil {
			names[name] = key
		}
	}
	if f.Organization != "" {
		if w.org = names[f.Organization]; w.org == 0 {
			w.empty = true
			return w, nil
		}
	}
	for _, t := range f.Types {
		if key := names[t]; key != 0 && !slices.Contains(w.kinds, key) {
			w.kinds = append(w.kinds, key)
		}
	}
	if len(f.Types) > 0 && len(w.kinds) == 0 {
		w.empty = true
		return w, nil
	}
	if f.DependencyToken != "" {
		w.token = hash(f.DependencyToken)
	}
	if f.CorrelationID != "" {
		w.correlation = hash(f.CorrelationID)
	}
	switch {
	case f.CorrelationID != "":
		w.index, w.on = "operations_by_correlation", []condition{{column: "correlation", value: w.correlation}}
	case f.DependencyToken != "":
		w.index, w.on = "operations_by_token", []condition{{column: "token", value: w.token}}
	default:
		return w, w.choose(ctx, tx)
	}
	return w, nil
}

// choose takes the index along which the fewest rows lie; the counts tell.
func (w *walk) choose(ctx context.Context, tx *sql.Tx) error {
	f := w.filter
	statuses := slices.Clone(f.Statuses)
	slices.Sort(statuses)
	statuses = slices.Compact(statuses)
	if w.org == 0 && len(w.kinds) == 0 && len(statuses) == 0 {
		return nil
	}
	rows, err := tx.QueryContext(ctx, "SELECT type, status, n FROM counts WHERE org = 0")
	if err != nil {
		return err
	}
	defer rows.Close()
	var all, ofKinds, ofStatuses int64
	for rows.Next() {
		var kind, n int64
		var status operation.Status
		if err := rows.Scan(&kind, &status, &n); err != nil {
			return err
		}
		all += n
		if slices.Contains(w.kinds, kind) {
			ofKinds += n
		}
		if slices.Contains(statuses, status) {
			ofStatuses += n
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	best := all
	if w.org != 0 {
		var ofOrg int64
		if err := tx.QueryRowContext(ctx, "SELECT coalesce(sum(n), 0) FROM counts WHERE org = ?", w.org).Scan(&ofOrg); err != nil {
			return err
		}
		best = ofOrg
		w.index, w.on = "operations_by_org", []condition{{column: "org", value: w.org}}
	}
	if len(w.kinds) > 0 && ofKinds < best {
		best = ofKinds
		w.index, w.on = "operations_by_type", nil
		for _, kind := range w.kinds {
			w.on = append(w.on, condition{column: "type", value: kind})
		}
	}
	if len(statuses) > 0 && ofStatuses < best && !slices.Contains(statuses, operation.StatusSucceeded) {
		w.index, w.on = "operations_by_status", nil
		for _, status := range statuses {
			// The second condition is what makes the partial index usable.
			w.on = append(w.on, condition{column: "status", value: int64(status), extra: fmt.Sprintf(" AND status <> %d", succeeded)})
		}
	}
	return nil
}

// sql is the walk as a query.
func (w *walk) sql(order projections.Order, after *projections.Mark, limit int) (string, []any) {
	var b strings.Builder
	var args []any
	on := w.on
	if len(on) == 0 {
		on = []condition{{}}
	}
	direction, beyond := "DESC", "<"
	if order == projections.OldestFirst {
		direction, beyond = "ASC", ">"
	}
	for i, c := range on {
		if i > 0 {
			b.WriteString(" UNION ALL ")
		}
		b.WriteString("SELECT key, org, type, status, wait, created, modified, token, correlation FROM operations INDEXED BY " + w.index + " WHERE 1")
		if c.column != "" {
			b.WriteString(" AND " + c.column + " = ?" + c.extra)
			args = append(args, c.value)
		}
		if w.filter.CreatedFrom != 0 {
			b.WriteString(" AND created >= ?")
			args = append(args, int64(w.filter.CreatedFrom))
		}
		if w.filter.CreatedTo != 0 {
			b.WriteString(" AND created < ?")
			args = append(args, int64(w.filter.CreatedTo))
		}
		if after != nil {
			b.WriteString(" AND (created, key) " + beyond + " (?, ?)")
			args = append(args, int64(after.Created), int64(after.Key))
		}
	}
	b.WriteString(" ORDER BY created " + direction + ", key " + direction + " LIMIT ?")
	return b.String(), append(args, limit)
}

// passes checks everything that candidates show.
func (w *walk) passes(r *candidate) bool {
	f := w.filter
	switch {
	case w.org != 0 && r.org != w.org,
		len(w.kinds) > 0 && !slices.Contains(w.kinds, r.kind),
		len(f.Statuses) > 0 && !slices.Contains(f.Statuses, operation.Status(r.status)),
		len(f.Waits) > 0 && !slices.Contains(f.Waits, operation.Wait(r.wait)),
		f.DependencyToken != "" && r.token.Int64 != w.token,
		f.CorrelationID != "" && r.correlation.Int64 != w.correlation,
		f.ModifiedFrom != 0 && operation.Time(r.modified) < f.ModifiedFrom,
		f.ModifiedTo != 0 && operation.Time(r.modified) >= f.ModifiedTo:
		return false
	}
	return true
}
