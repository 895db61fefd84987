package sqlite

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/projections"
)

// Dump shows everything in one read transaction. While it runs the file beside the database that has the newest batches (WAL)
// cannot be folded back and grows.
func (s *Store) Dump(ctx context.Context, v projections.Visitor) error {
	tx, err := s.read.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("dump the tables: %w", err)
	}
	defer tx.Rollback()
	positions, err := scanPositions(tx.QueryContext(ctx, "SELECT partition, next, at, chain FROM positions ORDER BY partition"))
	if err != nil {
		return err
	}
	if v.Positions != nil {
		if err := v.Positions(positions); err != nil {
			return err
		}
	}
	if v.Operation != nil {
		if err := dumpOperations(ctx, tx, v); err != nil {
			return err
		}
	}
	if v.Rejection != nil {
		if err := dumpRejections(ctx, tx, v); err != nil {
			return err
		}
	}
	if v.Count == nil {
		return nil
	}
	counts, err := scanCounts(tx.QueryContext(ctx, `SELECT coalesce(o.name, ''), t.name, c.status, c.wait, c.n FROM counts c
		JOIN names t ON t.key = c.type LEFT JOIN names o ON o.key = c.org ORDER BY c.org <> 0, 1, 2, 3, 4`))
	if err != nil {
		return err
	}
	for _, c := range counts {
		if err := v.Count(c); err != nil {
			return err
		}
	}
	return nil
}

func dumpOperations(ctx context.Context, tx *sql.Tx, v projections.Visitor) error {
	rows, err := tx.QueryContext(ctx, `SELECT p.key, coalesce(o.name, ''), coalesce(t.name, ''), p.status, p.wait, p.created, p.modified, p.id_hash,
		p.token, p.correlation, p.state, p.history, p.request, e.events
		FROM operations p LEFT JOIN names o ON o.key = p.org LEFT JOIN names t ON t.key = p.type
		LEFT JOIN operation_events e ON e.key = p.key ORDER BY p.key, e.first`)
	if err != nil {
		return fmt.Errorf("dump operations: %w", err)
	}
	defer rows.Close()
	var row *projections.Row
	var history []byte
	show := func() error {
		if row == nil {
			return nil
		}
		return v.Operation(row, history)
	}
	for rows.Next() {
		var c columns
		var key int64
		var state, first, request, events sql.RawBytes
		if err := rows.Scan(&key, &c.org, &c.kind, &c.status, &c.wait, &c.created, &c.modified, &c.id, &c.token, &c.correlation, &state, &first, &request, &events); err != nil {
			return fmt.Errorf("dump operations: %w", err)
		}
		if row == nil || row.Key() != projections.Key(key) {
			if err := show(); err != nil {
				return err
			}
			row = &projections.Row{Partition: projections.Key(key).Partition()}
			if err := projections.DecodeState(state, &row.State); err != nil {
				return fmt.Errorf("operation %v: %w", projections.Key(key), err)
			}
			row.Request.Raw = append([]byte{}, request...)
			history = append(history[:0], first...)
			if want := columnsOf(row); (c != want || row.Key() != projections.Key(key)) && v.Fault != nil {
				if err := v.Fault(projections.Key(key), fmt.Sprintf("its columns say %+v, its state says %v %+v", c, row.Key(), want)); err != nil {
					return err
				}
			}
		}
		history = append(history, events...)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("dump operations: %w", err)
	}
	if err := show(); err != nil {
		return err
	}
	return dumpOrphans(ctx, tx, v)
}

// dumpOrphans tells of histories and ids without an operation, and of operations that are not found by their id.
func dumpOrphans(ctx context.Context, tx *sql.Tx, v projections.Visitor) error {
	if v.Fault == nil {
		return nil
	}
	for _, c := range []struct{ query, what string }{
		{"SELECT DISTINCT key FROM operation_events WHERE key NOT IN (SELECT key FROM operations)", "there is a history without an operation"},
		{"SELECT key FROM (SELECT key FROM ids UNION ALL SELECT key FROM ids_new) WHERE key NOT IN (SELECT key FROM operations)", "there is an id without an operation"},
		{`SELECT key FROM operations o WHERE 1 <> (SELECT count(*) FROM ids i WHERE i.id_hash = o.id_hash AND i.key = o.key)
			+ (SELECT count(*) FROM ids_new i WHERE i.id_hash = o.id_hash AND i.key = o.key)`, "it is not found by its id, or twice"},
	} {
		if err := faults(ctx, tx, v, c.query, c.what); err != nil {
			return fmt.Errorf("look whether %s: %w", c.what, err)
		}
	}
	return nil
}

func faults(ctx context.Context, tx *sql.Tx, v projections.Visitor, query, what string) error {
	rows, err := tx.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var key int64
		if err := rows.Scan(&key); err != nil {
			return err
		}
		if err := v.Fault(projections.Key(key), what); err != nil {
			return err
		}
	}
	return rows.Err()
}

// columns are what lists search by.
type columns struct {
	org, kind          string
	status             operation.Status
	wait               operation.Wait
	created, modified  operation.Time
	id                 int64
	token, correlation sql.NullInt64
}

// columnsOf says what the columns of a row must be.
func columnsOf(row *projections.Row) columns {
	c := columns{
		org: row.Org, kind: row.Request.Type, status: row.Status, wait: row.Wait(), created: row.CreatedAt, modified: row.ModifiedAt,
		id: hashID(row.Org, row.ID),
	}
	if token := row.Request.DependencyToken; token != "" {
		c.token = sql.NullInt64{Int64: hash(token), Valid: true}
	}
	if x := row.Request.Context; x != nil && x.CorrelationID != "" {
		c.correlation = sql.NullInt64{Int64: hash(x.CorrelationID), Valid: true}
	}
	return c
}

func dumpRejections(ctx context.Context, tx *sql.Tx, v projections.Visitor) error {
	rows, err := tx.QueryContext(ctx, "SELECT key, at, body, id_hash FROM rejections ORDER BY key")
	if err != nil {
		return fmt.Errorf("dump rejections: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		r, err := scanRejection(rows, &id)
		if err != nil {
			return err
		}
		if id != hashID(r.Org, r.ID) && v.Fault != nil {
			if err := v.Fault(projections.KeyOf(r.Partition, r.Place), "a rejection is not found by its id"); err != nil {
				return err
			}
		}
		if err := v.Rejection(&r); err != nil {
			return err
		}
	}
	return rows.Err()
}
