package cockroach

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/projections"
)

// Of one statement: CockroachDB refuses messages of more than 16 MiB.
const (
	maxRows  = 4096
	maxBytes = 4 << 20
)

// unsureTries is how often a batch is tried of which it is not known whether it was written.
const unsureTries = 8

// errUnlisted says that an older version has written since the statuses were last listed.
var errUnlisted = errors.New("the tables were written by a version that does not list statuses")

// errRaced says that a position moved between its lock and its update: the row was not there yet when it was to be locked, and
// somebody else made it.
var errRaced = errors.New("the positions moved while they were being locked")

// Apply writes a batch in one transaction.
func (s *Store) Apply(ctx context.Context, batch *projections.Batch) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := s.ready(ctx)
	if err != nil {
		return err
	}
	w := newWriting(batch, f.buckets)
	unsure, listed := false, false
	for n := 0; ; n++ {
		there := false
		err := s.within(ctx, &s.writes, func(ctx context.Context) error {
			return f.transact(ctx, s, func(tx pgx.Tx) error {
				var err error
				there, err = w.run(ctx, tx, unsure)
				return err
			})
		})
		var lost *ambiguousError
		switch {
		case err == nil:
			if there {
				s.settled.Add(1)
			}
			return nil
		case errors.As(err, &lost):
			// Without positions nobody can tell afterwards.
			if unsure = true; len(batch.Steps) == 0 {
				return err
			}
		case errors.Is(err, errRaced):
		case !listed && (errors.Is(err, errUnlisted) || code(err) == codeDuplicate):
			// What is there already may be a status that was listed wrongly.
			listed = true
			if err := s.listStatuses(ctx, f); err != nil {
				return err
			}
		case unsure && !definite(err):
			// The database is away; it is still open what became of the first try.
		default:
			return err
		}
		if n == unsureTries || !sleep(ctx, backoff(n+3)) {
			if unsure {
				return fmt.Errorf("write a batch of which it is not known whether it was written; read the positions, they tell: %w", err)
			}
			return err
		}
	}
}

// definite says whether the server has refused the batch, rather than not been heard.
func definite(err error) bool {
	var moved *projections.PositionError
	return errors.As(err, &moved) || code(err) != "" && !unknown(err)
}

// writing is a batch as statements.
type writing struct {
	steps []projections.Step // by partition
	rest  pgx.Batch          // what follows the lock
	moves []expectation      // by statement of rest
}

// expectation is how many rows a statement must change, -1 for any number.
type expectation struct {
	rows int64
	err  error // what it means if it does not
}

// newWriting makes the statements. They are made once, however often they are run.
func newWriting(batch *projections.Batch, buckets int) *writing {
	w := &writing{steps: slices.Clone(batch.Steps)}
	slices.SortFunc(w.steps, func(a, b projections.Step) int { return int(a.To.Partition - b.To.Partition) })
	w.positions()
	w.deletes(batch.Deleted, buckets)
	w.changes(batch.Changes, buckets)
	w.statuses(batch.Changes, buckets)
	w.rejections(batch.Rejections, buckets)
	shard := int64(-1) // nobody's
	if len(w.steps) > 0 {
		shard = int64(w.steps[0].To.Partition)
	}
	w.counts(batch.Counts, shard)
	return w
}

func (w *writing) add(expect expectation, query string, args ...any) {
	w.rest.Queue(query, args...)
	w.moves = append(w.moves, expect)
}

var anyNumber = expectation{rows: -1}

const lockPositions = "SELECT partition, next, chain, coalesce(listed, -1) FROM positions WHERE partition = ANY($1::bigint[]) ORDER BY partition FOR UPDATE"

// run writes the batch, unless it finds that an earlier try has, which it looks for when it is unsure.
func (w *writing) run(ctx context.Context, tx pgx.Tx, unsure bool) (there bool, err error) {
	var partitions []int64
	for _, step := range w.steps {
		partitions = append(partitions, int64(step.To.Partition))
	}
	if unsure {
		rows, err := tx.Query(ctx, lockPositions, partitions)
		have, err := scanLocked(rows, err)
		if err != nil {
			return false, err
		}
		there = true
		for _, step := range w.steps {
			h := have[step.To.Partition]
			there = there && h.next == step.To.Next && bytes.Equal(h.chain, step.To.Chain)
		}
		if there {
			return true, nil
		}
		if err := w.check(have); err != nil {
			return false, err
		}
	}
	b := &pgx.Batch{}
	if len(w.steps) > 0 {
		b.Queue(lockPositions, partitions)
	}
	b.QueuedQueries = append(b.QueuedQueries, w.rest.QueuedQueries...)
	if b.Len() == 0 {
		return false, nil
	}
	results := tx.SendBatch(ctx, b)
	err = w.read(results)
	if closed := results.Close(); err == nil {
		err = closed
	}
	return false, err
}

// read looks at what the statements have done.
func (w *writing) read(results pgx.BatchResults) error {
	if len(w.steps) > 0 {
		rows, err := results.Query()
		have, err := scanLocked(rows, err)
		if err != nil {
			return fmt.Errorf("lock the positions: %w", err)
		}
		if err := w.check(have); err != nil {
			return err
		}
	}
	for i, expect := range w.moves {
		tag, err := results.Exec()
		if err != nil {
			return fmt.Errorf("write: %.60s …: %w", w.rest.QueuedQueries[i].SQL, err)
		}
		if expect.rows >= 0 && tag.RowsAffected() != expect.rows {
			return fmt.Errorf("expected to change %d rows, but changed %d: %w", expect.rows, tag.RowsAffected(), expect.err)
		}
	}
	return nil
}

// locked is a position that nobody else can move.
type locked struct {
	next, listed int64
	chain        []byte
}

func scanLocked(rows pgx.Rows, err error) (map[int32]locked, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	have := map[int32]locked{}
	for rows.Next() {
		var partition int32
		var l locked
		if err := rows.Scan(&partition, &l.next, &l.chain, &l.listed); err != nil {
			return nil, err
		}
		have[partition] = l
	}
	return have, rows.Err()
}

// check compares the positions with where the batch begins.
func (w *writing) check(have map[int32]locked) error {
	for _, step := range w.steps {
		h, known := have[step.To.Partition]
		if h.next != step.From {
			return &projections.PositionError{Partition: step.To.Partition, Have: h.next, Want: step.From}
		}
		if known && h.listed != h.next {
			return errUnlisted
		}
	}
	return nil
}

// positions moves them. Each statement is conditional by itself: CockroachDB's locks are a courtesy under SERIALIZABLE, and a row
// that is not there cannot be locked at all.
func (w *writing) positions() {
	var begun, moved struct {
		partition, from, next, at []int64
		chain                     [][]byte
	}
	for _, step := range w.steps {
		to := &moved
		if step.From == 0 {
			to = &begun
		}
		to.partition, to.from = append(to.partition, int64(step.To.Partition)), append(to.from, step.From)
		to.next, to.at = append(to.next, step.To.Next), append(to.at, int64(step.To.At))
		to.chain = append(to.chain, step.To.Chain)
	}
	if n := len(begun.partition); n > 0 {
		w.add(expectation{int64(n), errRaced},
			`INSERT INTO positions (partition, next, at, chain, listed) SELECT u.partition, u.next, u.at, u.chain, u.next
			FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bytea[]) AS u (partition, next, at, chain) ON CONFLICT (partition) DO NOTHING`,
			begun.partition, begun.next, begun.at, begun.chain)
	}
	if n := len(moved.partition); n > 0 {
		w.add(expectation{int64(n), errRaced},
			`UPDATE positions SET next = u.next, at = u.at, chain = u.chain, listed = u.next
			FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bytea[]) AS u (partition, was, next, at, chain)
			WHERE positions.partition = u.partition AND positions.next = u.was`,
			moved.partition, moved.from, moved.next, moved.at, moved.chain)
	}
}

func (w *writing) deletes(keys []projections.Key, buckets int) {
	for part := range slices.Chunk(keys, maxRows) {
		b, k := make([]int16, len(part)), make([]int64, len(part))
		for i, key := range part {
			b[i], k[i] = bucketOf(key, buckets), int64(key)
		}
		w.add(anyNumber, `DELETE FROM operation_statuses AS s USING operations AS o, unnest($1::smallint[], $2::bigint[]) AS u (bucket, key)
			WHERE o.bucket = u.bucket AND o.key = u.key AND s.status = o.status AND s.bucket = o.bucket AND s.created = o.created AND s.key = o.key`, b, k)
		for _, table := range []string{"operation_events", "operations"} {
			w.add(anyNumber, "DELETE FROM "+table+" USING unnest($1::smallint[], $2::bigint[]) AS u (bucket, key) WHERE "+
				table+".bucket = u.bucket AND "+table+".key = u.key", b, k)
		}
	}
}

// operations are rows as columns.
type operations struct {
	bucket, status, wait                  []int16
	key, org, kind, created, modified, id []int64
	token, correlation                    []*int64
	state, history, request               [][]byte
	size                                  int
	insert                                bool
}

func (o *operations) full() bool { return len(o.key) == maxRows || o.size >= maxBytes }

const insertOperations = `INSERT INTO operations (bucket, status, wait, key, org, type, created, modified, id_hash, token, correlation, state, history, request)
	SELECT * FROM unnest($1::smallint[], $2::smallint[], $3::smallint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bytea[], $13::bytea[], $14::bytea[])`

// The request stays unless there is another; all else that can change does.
const updateOperations = `UPDATE operations SET status = u.status, wait = u.wait, org = u.org, type = u.type, modified = u.modified,
	token = u.token, correlation = u.correlation, state = u.state, request = coalesce(u.request, operations.request)
	FROM unnest($1::smallint[], $2::smallint[], $3::smallint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bytea[], $11::bytea[])
		AS u (bucket, status, wait, key, org, type, modified, token, correlation, state, request)
	WHERE operations.bucket = u.bucket AND operations.key = u.key`

// errMissing says that the tables do not have what the projector believes to have written.
var errMissing = errors.New("some operations that are to be changed are not in the tables: they were changed by something else; give the projector an empty database")

// flush adds the statement and begins anew.
func (w *writing) flush(o *operations) {
	switch {
	case len(o.key) == 0:
		return
	case o.insert:
		w.add(anyNumber, insertOperations, o.bucket, o.status, o.wait, o.key, o.org, o.kind, o.created, o.modified, o.id, o.token, o.correlation, o.state, o.history, o.request)
	default:
		w.add(expectation{int64(len(o.key)), errMissing}, updateOperations, o.bucket, o.status, o.wait, o.key, o.org, o.kind, o.modified, o.token, o.correlation, o.state, o.request)
	}
	*o = operations{insert: o.insert}
}

// statuses are rows of operation_statuses as columns.
type statuses struct {
	status, bucket []int16
	created, key   []int64
}

func (s *statuses) add(status operation.Status, row *projections.Row, buckets int) {
	if status == operation.StatusAbsent || status == operation.StatusSucceeded {
		return
	}
	key := row.Key()
	s.status, s.bucket = append(s.status, int16(status)), append(s.bucket, bucketOf(key, buckets))
	s.created, s.key = append(s.created, int64(row.CreatedAt)), append(s.key, int64(key))
}

// write adds a statement for each maxRows of them.
func (s *statuses) write(w *writing, query string) {
	for from := 0; from < len(s.key); from += maxRows {
		to := min(from+maxRows, len(s.key))
		w.add(anyNumber, query, s.status[from:to], s.bucket[from:to], s.created[from:to], s.key[from:to])
	}
}

const unnestStatuses = "unnest($1::smallint[], $2::smallint[], $3::bigint[], $4::bigint[])"

// statuses moves operations from one status to another.
func (w *writing) statuses(changes []projections.Change, buckets int) {
	var left, entered statuses
	for i := range changes {
		if c := &changes[i]; c.Written && c.Was != c.Row.Status {
			left.add(c.Was, c.Row, buckets)
			entered.add(c.Row.Status, c.Row, buckets)
		}
	}
	left.write(w, "DELETE FROM operation_statuses AS s USING "+unnestStatuses+` AS u (status, bucket, created, key)
		WHERE s.status = u.status AND s.bucket = u.bucket AND s.created = u.created AND s.key = u.key`)
	entered.write(w, "INSERT INTO operation_statuses (status, bucket, created, key) SELECT * FROM "+unnestStatuses)
}

// listStatuses fills operation_statuses from the operations. Others wait meanwhile.
func (s *Store) listStatuses(ctx context.Context, f *found) error {
	ctx, cancel := context.WithTimeout(ctx, makeTime)
	defer cancel()
	err := f.transact(ctx, s, func(tx pgx.Tx) error {
		for _, statement := range []string{
			"SELECT partition FROM positions ORDER BY partition FOR UPDATE",
			"DELETE FROM operation_statuses",
			fmt.Sprintf("INSERT INTO operation_statuses (status, bucket, created, key) SELECT status, bucket, created, key FROM operations WHERE status <> %d", operation.StatusSucceeded),
			"UPDATE positions SET listed = next",
		} {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list the statuses of all operations: %w", err)
	}
	return nil
}

func (w *writing) changes(changes []projections.Change, buckets int) {
	fresh, known := operations{insert: true}, operations{}
	var events struct {
		bucket     []int16
		key, first []int64
		events     [][]byte
		size       int
	}
	flushEvents := func() {
		if len(events.key) > 0 {
			w.add(anyNumber, "INSERT INTO operation_events (bucket, key, first, events) SELECT * FROM unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::bytea[])",
				events.bucket, events.key, events.first, events.events)
		}
		events.bucket, events.key, events.first, events.events, events.size = nil, nil, nil, nil, 0
	}
	for i := range changes {
		c := &changes[i]
		key := c.Row.Key()
		if !c.New && len(c.History) > 0 {
			events.bucket, events.key = append(events.bucket, bucketOf(key, buckets)), append(events.key, int64(key))
			events.first, events.events = append(events.first, int64(c.First)), append(events.events, c.History)
			if events.size += len(c.History); len(events.key) == maxRows || events.size >= maxBytes {
				flushEvents()
			}
		}
		if !c.Written {
			continue
		}
		to, request := &known, c.Request
		if c.New {
			to = &fresh
			if request == nil {
				request = []byte{}
			}
		}
		to.add(columnsOf(c.Row, buckets), projections.AppendState(nil, &c.Row.State), c.History, request)
		if to.full() {
			w.flush(to)
		}
	}
	w.flush(&fresh)
	w.flush(&known)
	flushEvents()
}

func (o *operations) add(c columns, state, history, request []byte) {
	if history == nil {
		history = []byte{}
	}
	o.bucket, o.status, o.wait = append(o.bucket, c.bucket), append(o.status, int16(c.status)), append(o.wait, int16(c.wait))
	o.key, o.org, o.kind = append(o.key, int64(c.key)), append(o.org, c.org), append(o.kind, c.kind)
	o.created, o.modified, o.id = append(o.created, int64(c.created)), append(o.modified, int64(c.modified)), append(o.id, c.id)
	o.token, o.correlation = append(o.token, pointer(c.token)), append(o.correlation, pointer(c.correlation))
	o.state, o.history, o.request = append(o.state, state), append(o.history, history), append(o.request, request)
	o.size += len(state) + len(history) + len(request)
}

// pointer is how a column is given that may be NULL, which 0 stands for: no hash is 0.
func pointer(n int64) *int64 {
	if n == 0 {
		return nil
	}
	return &n
}

// columns are what lists search by; token and correlation are 0 when there is none.
type columns struct {
	bucket             int16
	status             operation.Status
	wait               operation.Wait
	key                projections.Key
	org, kind          int64
	created, modified  operation.Time
	id                 int64
	token, correlation int64
}

// columnsOf says what the columns of a row must be.
func columnsOf(row *projections.Row, buckets int) columns {
	c := columns{
		bucket: bucketOf(row.Key(), buckets), status: row.Status, wait: row.Wait(), key: row.Key(), org: hash(row.Org), kind: hash(row.Request.Type),
		created: row.CreatedAt, modified: row.ModifiedAt, id: hashID(row.Org, row.ID),
	}
	if token := row.Request.DependencyToken; token != "" {
		c.token = hash(token)
	}
	if x := row.Request.Context; x != nil && x.CorrelationID != "" {
		c.correlation = hash(x.CorrelationID)
	}
	return c
}

func (w *writing) rejections(rejections []projections.Rejection, buckets int) {
	for part := range slices.Chunk(rejections, maxRows) {
		var bucket []int16
		var key, id, at []int64
		var body [][]byte
		for i := range part {
			r := &part[i]
			k := projections.KeyOf(r.Partition, r.Place)
			bucket, key, id = append(bucket, bucketOf(k, buckets)), append(key, int64(k)), append(id, hashID(r.Org, r.ID))
			at, body = append(at, int64(r.At)), append(body, projections.AppendRejection(nil, r))
		}
		w.add(anyNumber, "INSERT INTO rejections (bucket, key, id_hash, at, body) SELECT * FROM unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bytea[])",
			bucket, key, id, at, body)
	}
}

// countKey is a number that is kept, but for its parts.
type countKey struct {
	org, kind string
	all       bool // of all organizations
	status    operation.Status
	wait      operation.Wait
}

// slot tells organizations and types apart whose short hashes fall together.
func (k *countKey) slot() []byte {
	sum := sumOf(k.org, k.kind)
	return sum[:16]
}

func (w *writing) counts(counts []projections.Count, shard int64) {
	deltas := map[countKey]int64{}
	for _, c := range counts {
		k := countKey{org: c.Organization, kind: c.Type, status: c.Status, wait: c.Wait}
		deltas[k] += c.N
		k.org, k.all = "", true
		deltas[k] += c.N
	}
	var org, n []int64
	var slot, orgName, kindName [][]byte
	var status, wait []int16
	less := false
	flush := func() {
		if len(org) == 0 {
			return
		}
		w.add(anyNumber, `INSERT INTO counts (org, slot, status, wait, shard, n, org_name, type_name)
			SELECT u.org, u.slot, u.status, u.wait, $8::bigint, u.n, u.org_name, u.type_name
			FROM unnest($1::bigint[], $2::bytea[], $3::smallint[], $4::smallint[], $5::bigint[], $6::bytea[], $7::bytea[]) AS u (org, slot, status, wait, n, org_name, type_name)
			ON CONFLICT (org, slot, status, wait, shard) DO UPDATE SET n = counts.n + excluded.n`,
			org, slot, status, wait, n, orgName, kindName, shard)
		if less {
			w.add(anyNumber, `DELETE FROM counts USING unnest($1::bigint[], $2::bytea[], $3::smallint[], $4::smallint[]) AS u (org, slot, status, wait)
				WHERE counts.org = u.org AND counts.slot = u.slot AND counts.status = u.status AND counts.wait = u.wait AND counts.shard = $5::bigint AND counts.n = 0`,
				org, slot, status, wait, shard)
		}
		org, n, slot, orgName, kindName, status, wait, less = nil, nil, nil, nil, nil, nil, nil, false
	}
	for k, d := range deltas {
		if d == 0 {
			continue
		}
		scope := int64(0)
		if !k.all {
			scope = hash(k.org)
		}
		org, n, slot = append(org, scope), append(n, d), append(slot, k.slot())
		orgName, kindName = append(orgName, []byte(k.org)), append(kindName, []byte(k.kind))
		status, wait = append(status, int16(k.status)), append(wait, int16(k.wait))
		less = less || d < 0 // parts that come back to 0 from below stay, and do no harm
		if len(org) == maxRows {
			flush()
		}
	}
	flush()
}
