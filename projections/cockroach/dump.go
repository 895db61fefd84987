package cockroach

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/projections"
)

// Dump shows everything as it was when it began.
func (s *Store) Dump(ctx context.Context, v projections.Visitor) error {
	f, err := s.ready(ctx)
	if err != nil {
		return err
	}
	tx, err := s.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return fmt.Errorf("dump the tables: %w", err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if f.snapshot != "" {
		if _, err := tx.Exec(ctx, f.snapshot); err != nil {
			return fmt.Errorf("dump the tables: %w", err)
		}
	}
	// Whoever looks at what is shown may take all the time there is.
	if _, err := tx.Exec(ctx, "SET LOCAL "+idleTimeout+" = 0"); err != nil {
		return fmt.Errorf("dump the tables: %w", err)
	}
	have, err := positions(ctx, tx)
	if err != nil {
		return err
	}
	if v.Positions != nil {
		if err := v.Positions(have); err != nil {
			return err
		}
	}
	if v.Operation != nil {
		if err := dumpOperations(ctx, tx, f.buckets, v); err != nil {
			return fmt.Errorf("dump operations: %w", err)
		}
	}
	if v.Rejection != nil {
		if err := dumpRejections(ctx, tx, f.buckets, v); err != nil {
			return fmt.Errorf("dump rejections: %w", err)
		}
	}
	if err := dumpStrays(ctx, tx, f.buckets, v); err != nil {
		return fmt.Errorf("look for rows that nobody finds: %w", err)
	}
	if v.Count == nil {
		return nil
	}
	var counts []projections.Count
	for _, where := range []string{"org = 0", "org <> 0"} { // the totals first: they have the organization ""
		part, err := scanCounts(tx.Query(ctx, fmt.Sprintf(selectCounts, where)))
		if err != nil {
			return fmt.Errorf("dump counts: %w", err)
		}
		slices.SortFunc(part, func(a, b projections.Count) int {
			return cmp.Or(cmp.Compare(a.Organization, b.Organization), cmp.Compare(a.Type, b.Type), cmp.Compare(a.Status, b.Status), cmp.Compare(a.Wait, b.Wait))
		})
		counts = append(counts, part...)
	}
	for _, c := range counts {
		if err := v.Count(c); err != nil {
			return err
		}
	}
	return nil
}

// dumpRows is how many rows of one bucket are held at a time.
const dumpRows = 500

// merged shows the rows of all buckets by their keys. Read returns rows of one bucket beyond a key, at most dumpRows.
func merged[T any](buckets int, key func(*T) int64, read func(bucket int16, beyond int64) ([]T, error), show func(*T) error) error {
	type head struct {
		rows []T
		at   int
		last int64
		done bool
	}
	heads := make([]head, buckets)
	for i := range heads {
		heads[i].last = -1
	}
	for {
		least := -1
		for i := range heads {
			h := &heads[i]
			if h.at == len(h.rows) && !h.done {
				rows, err := read(int16(i), h.last)
				if err != nil {
					return err
				}
				h.rows, h.at, h.done = rows, 0, len(rows) < dumpRows
				if len(rows) > 0 {
					h.last = key(&rows[len(rows)-1])
				}
			}
			if h.at < len(h.rows) && (least < 0 || key(&h.rows[h.at]) < key(&heads[least].rows[heads[least].at])) {
				least = i
			}
		}
		if least < 0 {
			return nil
		}
		h := &heads[least]
		if err := show(&h.rows[h.at]); err != nil {
			return err
		}
		h.at++
	}
}

// dumped is an operation with its columns.
type dumped struct {
	columns
	state, history, request []byte
	listed                  bool // in operation_statuses, as is due to all but those that have succeeded
}

func dumpOperations(ctx context.Context, tx pgx.Tx, buckets int, v projections.Visitor) error {
	read := func(bucket int16, beyond int64) ([]dumped, error) {
		rows, err := tx.Query(ctx, `SELECT key, org, type, status, wait, created, modified, id_hash, coalesce(token, 0), coalesce(correlation, 0), state, history, request,
			EXISTS (SELECT 1 FROM operation_statuses s WHERE s.status = o.status AND s.bucket = o.bucket AND s.created = o.created AND s.key = o.key)
			FROM operations o WHERE bucket = $1 AND key > $2 ORDER BY key LIMIT $3`, bucket, beyond, dumpRows)
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		var out []dumped
		for rows.Next() {
			d := dumped{columns: columns{bucket: bucket}}
			var status, wait int16
			var key, created, modified int64
			if err := rows.Scan(&key, &d.org, &d.kind, &status, &wait, &created, &modified, &d.id, &d.token, &d.correlation, &d.state, &d.history, &d.request, &d.listed); err != nil {
				return nil, err
			}
			d.key, d.status, d.wait = projections.Key(key), operation.Status(status), operation.Wait(wait)
			d.created, d.modified = operation.Time(created), operation.Time(modified)
			out = append(out, d)
		}
		if err := rows.Err(); err != nil {
			return nil, err
		}
		return out, addLater(ctx, tx, bucket, out)
	}
	listed := false
	if v.Fault != nil {
		if err := tx.QueryRow(ctx, statusesListed).Scan(&listed); err != nil {
			return err
		}
	}
	due := int64(0) // in operation_statuses
	show := func(d *dumped) error {
		row := projections.Row{Partition: d.key.Partition()}
		if err := projections.DecodeState(d.state, &row.State); err != nil {
			return fmt.Errorf("operation %v: %w", d.key, err)
		}
		row.Request.Raw = d.request
		if want := columnsOf(&row, buckets); d.columns != want && v.Fault != nil {
			if err := v.Fault(d.key, fmt.Sprintf("its columns say %+v, its state says %+v", d.columns, want)); err != nil {
				return err
			}
		}
		if d.status != operation.StatusSucceeded {
			due++
		}
		if listed && d.listed != (d.status != operation.StatusSucceeded) {
			if err := v.Fault(d.key, fmt.Sprintf("it is %s, and listed by status: %t", d.status, d.listed)); err != nil {
				return err
			}
		}
		return v.Operation(&row, d.history)
	}
	if err := merged(buckets, func(d *dumped) int64 { return int64(d.key) }, read, show); err != nil {
		return err
	}
	if v.Fault == nil {
		return nil
	}
	if listed {
		var have int64
		if err := tx.QueryRow(ctx, "SELECT count(*) FROM operation_statuses").Scan(&have); err != nil {
			return err
		}
		if have != due {
			if err := v.Fault(0, fmt.Sprintf("%d operations are listed by status, but %d should be", have, due)); err != nil {
				return err
			}
		}
	}
	rows, err := tx.Query(ctx, `SELECT DISTINCT e.key FROM operation_events e WHERE NOT EXISTS
		(SELECT 1 FROM operations o WHERE o.bucket = e.bucket AND o.key = e.key) LIMIT 1000`)
	if err != nil {
		return err
	}
	orphans, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return err
	}
	for _, key := range orphans {
		if err := v.Fault(projections.Key(key), "there is a history without an operation"); err != nil {
			return err
		}
	}
	return nil
}

// addLater adds the histories that stand in operation_events to these operations of one bucket.
func addLater(ctx context.Context, tx pgx.Tx, bucket int16, to []dumped) error {
	if len(to) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, "SELECT key, events FROM operation_events WHERE bucket = $1 AND key BETWEEN $2 AND $3 ORDER BY key, first",
		bucket, int64(to[0].key), int64(to[len(to)-1].key))
	if err != nil {
		return err
	}
	defer rows.Close()
	for i := 0; rows.Next(); {
		var key int64
		var events []byte
		if err := rows.Scan(&key, &events); err != nil {
			return err
		}
		for i < len(to) && int64(to[i].key) < key {
			i++
		}
		if i < len(to) && int64(to[i].key) == key {
			to[i].history = append(to[i].history, events...)
		}
	}
	return rows.Err()
}

func dumpRejections(ctx context.Context, tx pgx.Tx, buckets int, v projections.Visitor) error {
	type dumped struct {
		projections.Rejection
		at    columnsOfRejection
		found columnsOfRejection
	}
	key := func(r *projections.Rejection) projections.Key { return projections.KeyOf(r.Partition, r.Place) }
	read := func(bucket int16, beyond int64) ([]dumped, error) {
		rows, err := tx.Query(ctx, "SELECT key, at, body, id_hash FROM rejections WHERE bucket = $1 AND key > $2 ORDER BY key LIMIT $3", bucket, beyond, dumpRows)
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		var out []dumped
		for rows.Next() {
			d := dumped{at: columnsOfRejection{bucket: bucket}}
			if d.Rejection, err = scanRejection(rows, &d.at.id); err != nil {
				return nil, err
			}
			d.found = columnsOfRejection{bucketOf(key(&d.Rejection), buckets), hashID(d.Org, d.ID)}
			out = append(out, d)
		}
		return out, rows.Err()
	}
	show := func(d *dumped) error {
		if d.at != d.found && v.Fault != nil {
			if err := v.Fault(key(&d.Rejection), "a rejection is not found by its id"); err != nil {
				return err
			}
		}
		return v.Rejection(&d.Rejection)
	}
	return merged(buckets, func(d *dumped) int64 { return int64(key(&d.Rejection)) }, read, show)
}

// columnsOfRejection are what a rejection is found by.
type columnsOfRejection struct {
	bucket int16
	id     int64
}

// dumpStrays tells of rows that are in no bucket, so that only reads by id would find them, and of counts that stand under
// another name than their own.
func dumpStrays(ctx context.Context, tx pgx.Tx, buckets int, v projections.Visitor) error {
	if v.Fault == nil {
		return nil
	}
	for _, table := range []string{"operations", "rejections"} {
		rows, err := tx.Query(ctx, "SELECT key FROM "+table+" WHERE bucket < 0 OR bucket >= $1 OR key < 0 LIMIT 1000", buckets)
		if err != nil {
			return err
		}
		strays, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return err
		}
		for _, key := range strays {
			if err := v.Fault(projections.Key(key), "a row of "+table+" is where no list looks"); err != nil {
				return err
			}
		}
	}
	rows, err := tx.Query(ctx, "SELECT DISTINCT org, slot, org_name, type_name FROM counts")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var org int64
		var slot, orgName, kind []byte
		if err := rows.Scan(&org, &slot, &orgName, &kind); err != nil {
			return err
		}
		k := countKey{org: string(orgName), kind: string(kind)}
		if (org == 0 && len(orgName) == 0 || org == hash(k.org)) && bytes.Equal(slot, k.slot()) {
			continue
		}
		if err := v.Fault(0, fmt.Sprintf("a number of operations of organization %q and type %q stands under another name", orgName, kind)); err != nil {
			return err
		}
	}
	return rows.Err()
}
