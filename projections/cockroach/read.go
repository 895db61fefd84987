package cockroach

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/projections"
)

func limited(limit int) int { return min(max(limit, 1), projections.MaxLimit) }

// querier is a pool, or a transaction.
type querier interface {
	Query(ctx context.Context, query string, args ...any) (pgx.Rows, error)
}

// readTries is how often a read is tried that ran into a writer. Under SERIALIZABLE even one statement that only reads can.
const readTries = 5

// read does something that only reads. It may be done several times: once more, too, when nothing was heard in time, since another
// connection may be better.
func (s *Store) read(ctx context.Context, do func(ctx context.Context, f *found) error) error {
	f, err := s.ready(ctx)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		err := s.within(ctx, &s.reads, func(ctx context.Context) error { return do(ctx, f) })
		if n == 0 && errors.Is(err, errSilent) && ctx.Err() == nil {
			continue
		}
		if code(err) != codeSerialization || n == readTries || !sleep(ctx, backoff(n)) {
			return err
		}
	}
}

// Get returns the latest operation of this name.
func (s *Store) Get(ctx context.Context, org string, id operation.ID) (projections.Row, error) {
	row, _, err := s.named(ctx, org, id)
	return row, err
}

// named also returns the history that stands in the row.
func (s *Store) named(ctx context.Context, org string, id operation.ID) (row projections.Row, history []byte, err error) {
	err = s.read(ctx, func(ctx context.Context, _ *found) error {
		row, history, err = s.one(ctx, org, id)
		return err
	})
	if err != nil && !errors.Is(err, projections.ErrNotFound) {
		return row, nil, fmt.Errorf("read operation %q of organization %q: %w", id, org, err)
	}
	return row, history, err
}

func (s *Store) one(ctx context.Context, org string, id operation.ID) (projections.Row, []byte, error) {
	rows, err := s.pool.Query(ctx, "SELECT key, state, history, request FROM operations WHERE id_hash = $1 ORDER BY created DESC, key DESC", hashID(org, id))
	if err != nil {
		return projections.Row{}, nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var key int64
		var state, history, request []byte
		if err := rows.Scan(&key, &state, &history, &request); err != nil {
			return projections.Row{}, nil, err
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
		return projections.Row{}, nil, err
	}
	return projections.Row{}, nil, projections.ErrNotFound
}

// History returns events of the latest operation of this name.
func (s *Store) History(ctx context.Context, org string, id operation.ID, after operation.Place, limit int) ([]projections.Entry, error) {
	limit = limited(limit)
	row, history, err := s.named(ctx, org, id)
	if err != nil {
		return nil, err
	}
	row.Request.Raw = nil
	first, err := projections.DecodeHistory(nil, history, &row, after, limit)
	if err != nil || len(first) == limit {
		return first, err
	}
	var out []projections.Entry
	err = s.read(ctx, func(ctx context.Context, f *found) error {
		out, err = s.later(ctx, f, slices.Clip(first), &row, after, limit)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the history of operation %q of organization %q: %w", id, org, err)
	}
	return out, nil
}

// later adds the events of later batches than the first. Every row of them has at least one event, so limit rows suffice, and
// one more: the place after which to show may be inside a row.
func (s *Store) later(ctx context.Context, f *found, out []projections.Entry, row *projections.Row, after operation.Place, limit int) ([]projections.Entry, error) {
	rows, err := s.pool.Query(ctx, `SELECT events FROM operation_events WHERE bucket = $1 AND key = $2
		AND first >= coalesce((SELECT max(first) FROM operation_events WHERE bucket = $1 AND key = $2 AND first <= $3), 0) ORDER BY first LIMIT $4`,
		bucketOf(row.Key(), f.buckets), int64(row.Key()), int64(after), limit+1)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() && len(out) < limit {
		var events []byte
		if err := rows.Scan(&events); err != nil {
			return nil, err
		}
		if out, err = projections.DecodeHistory(out, events, row, after, limit); err != nil {
			return nil, err
		}
	}
	return out, rows.Err()
}

// States returns the latest operations of these names in their partitions.
func (s *Store) States(ctx context.Context, refs []projections.Ref) ([]projections.Row, error) {
	var out []projections.Row
	for part := range slices.Chunk(refs, maxRows) {
		var rows []projections.Row
		err := s.read(ctx, func(ctx context.Context, _ *found) error {
			var err error
			rows, err = s.states(ctx, part)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read %d operations: %w", len(part), err)
		}
		out = append(out, rows...)
	}
	return out, nil
}

func (s *Store) states(ctx context.Context, refs []projections.Ref) ([]projections.Row, error) {
	ids, from, to := make([]int64, len(refs)), make([]int64, len(refs)), make([]int64, len(refs))
	wanted := make(map[projections.Ref]bool, len(refs))
	for i, ref := range refs {
		ids[i] = hashID(ref.Org, ref.ID)
		from[i], to[i] = int64(projections.KeyOf(ref.Partition, 0)), int64(projections.KeyOf(ref.Partition, projections.MaxPlace))
		wanted[ref] = true
	}
	rows, err := s.pool.Query(ctx, `SELECT o.key, o.state FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS u (id_hash, lowest, highest)
		JOIN operations o ON o.id_hash = u.id_hash AND o.key BETWEEN u.lowest AND u.highest`, ids, from, to)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	latest := make(map[projections.Ref]projections.Row, len(refs))
	for rows.Next() {
		var key int64
		var state []byte
		if err := rows.Scan(&key, &state); err != nil {
			return nil, err
		}
		row := projections.Row{Partition: projections.Key(key).Partition()}
		if err := projections.DecodeState(state, &row.State); err != nil {
			return nil, err
		}
		ref := projections.Ref{Partition: row.Partition, Org: row.Org, ID: row.ID}
		if have, ok := latest[ref]; wanted[ref] && (!ok || have.Key() < row.Key()) {
			latest[ref] = row
		}
	}
	out := make([]projections.Row, 0, len(latest))
	for _, row := range latest {
		out = append(out, row)
	}
	return out, rows.Err()
}

// spare is how many rows a read by a hash looks at beyond those that it was asked for: other names may have the same hash.
const spare = 64

// Rejections returns refused commands about an id without an operation.
func (s *Store) Rejections(ctx context.Context, org string, id operation.ID, limit int) (out []projections.Rejection, err error) {
	limit = limited(limit)
	err = s.read(ctx, func(ctx context.Context, _ *found) error {
		out = nil
		rows, err := s.pool.Query(ctx, "SELECT key, at, body FROM rejections WHERE id_hash = $1 ORDER BY at DESC, key DESC LIMIT $2", hashID(org, id), limit+spare)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() && len(out) < limit {
			r, err := scanRejection(rows)
			if err != nil {
				return err
			}
			if r.Org == org && r.ID == id {
				out = append(out, r)
			}
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("read rejections about %q of organization %q: %w", id, org, err)
	}
	return out, nil
}

// scanRejection reads key, at and body, and what comes behind them.
func scanRejection(rows pgx.Rows, more ...any) (r projections.Rejection, err error) {
	var key, at int64
	var body []byte
	if err := rows.Scan(append([]any{&key, &at, &body}, more...)...); err != nil {
		return r, err
	}
	r.Partition, r.Place, r.At = projections.Key(key).Partition(), projections.Key(key).Place(), operation.Time(at)
	return r, projections.DecodeRejection(body, &r)
}

const selectCounts = "SELECT org_name, type_name, status, wait, sum(n)::bigint FROM counts WHERE %s GROUP BY org_name, type_name, status, wait HAVING sum(n) <> 0"

// Counts returns counts that are kept as rows change.
func (s *Store) Counts(ctx context.Context, filter projections.CountFilter) (out []projections.Count, err error) {
	where, scope := "org = $1", int64(0)
	switch {
	case filter.Organization != "":
		scope = hash(filter.Organization)
	case filter.PerOrganization:
		where = "org <> $1"
	}
	err = s.read(ctx, func(ctx context.Context, _ *found) error {
		out, err = scanCounts(s.pool.Query(ctx, fmt.Sprintf(selectCounts, where), scope))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read counts: %w", err)
	}
	if filter.Organization != "" {
		out = slices.DeleteFunc(out, func(c projections.Count) bool { return c.Organization != filter.Organization })
	}
	return out, nil
}

func scanCounts(rows pgx.Rows, err error) ([]projections.Count, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []projections.Count
	for rows.Next() {
		var c projections.Count
		var org, kind []byte
		var status, wait int16
		if err := rows.Scan(&org, &kind, &status, &wait, &c.N); err != nil {
			return nil, err
		}
		c.Organization, c.Type, c.Status, c.Wait = string(org), string(kind), operation.Status(status), operation.Wait(wait)
		out = append(out, c)
	}
	return out, rows.Err()
}

// Positions returns how far the tables are.
func (s *Store) Positions(ctx context.Context) (out []projections.Position, err error) {
	err = s.read(ctx, func(ctx context.Context, _ *found) error {
		out, err = positions(ctx, s.pool)
		return err
	})
	return out, err
}

func positions(ctx context.Context, q querier) ([]projections.Position, error) {
	rows, err := q.Query(ctx, "SELECT partition, next, at, chain FROM positions ORDER BY partition")
	if err != nil {
		return nil, fmt.Errorf("read positions: %w", err)
	}
	defer rows.Close()
	var out []projections.Position
	for rows.Next() {
		var p projections.Position
		var at int64
		if err := rows.Scan(&p.Partition, &p.Next, &at, &p.Chain); err != nil {
			return nil, fmt.Errorf("read positions: %w", err)
		}
		p.At = operation.Time(at)
		out = append(out, p)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read positions: %w", err)
	}
	return out, nil
}
