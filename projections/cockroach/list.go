package cockroach

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/projections"
)

// defaultBudget is how many rows one page looks at: a filter that hardly anything passes gives short pages, not slow ones.
const defaultBudget = 20_000

// List walks along the index that leaves the fewest rows, and has the database check the rest of the filter row by row.
func (s *Store) List(ctx context.Context, filter projections.Filter, order projections.Order, cursor string, limit int) (page projections.Page, err error) {
	var after *projections.Mark
	if cursor != "" {
		m, err := projections.ParseCursor(cursor, &filter, order)
		if err != nil {
			return projections.Page{}, err
		}
		after = &m
	}
	err = s.read(ctx, func(ctx context.Context, f *found) error {
		page, err = s.list(ctx, f, &filter, order, after, limited(limit))
		return err
	})
	if err != nil {
		return projections.Page{}, fmt.Errorf("list operations: %w", err)
	}
	return page, nil
}

func (s *Store) list(ctx context.Context, f *found, filter *projections.Filter, order projections.Order, after *projections.Mark, limit int) (page projections.Page, err error) {
	w := newWalk(filter, order, after, f.buckets, s.budget)
	if err := s.choose(ctx, w); err != nil {
		return page, err
	}
	query, args := w.page(limit + 1)
	hits, _, err := s.hits(ctx, query, args)
	if err != nil {
		return page, err
	}
	if len(hits) <= limit && w.residual() {
		// Fewer than were asked for: either the list ends here, or the walk does. That is found out in one statement with the
		// hits, so that what is written meanwhile does not come in between.
		query, args = w.pageAndEnd(limit + 1)
		var ends []projections.Mark
		if hits, ends, err = s.hits(ctx, query, args); err != nil {
			return page, err
		}
		if len(hits) <= limit && len(ends) == 2 {
			page.Next = projections.Cursor(ends[0], filter, order)
		}
	}
	if len(hits) > limit {
		hits = hits[:limit]
		last := &hits[limit-1]
		page.Next = projections.Cursor(projections.Mark{Created: last.CreatedAt, Key: last.Key()}, filter, order)
	}
	for i := range hits {
		if sameTexts(filter, &hits[i]) {
			page.Rows = append(page.Rows, hits[i])
		}
	}
	return page, nil
}

// hits reads the rows of a page, and the places where the walk ends.
func (s *Store) hits(ctx context.Context, query string, args []any) (hits []projections.Row, ends []projections.Mark, err error) {
	// The text differs from filter to filter: nothing of it is kept, neither here nor on the server.
	rows, err := s.pool.Query(ctx, query, append([]any{pgx.QueryExecModeExec}, args...)...)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var created, key int64
		var state []byte
		var part int
		if err := rows.Scan(&created, &key, &state, &part); err != nil {
			return nil, nil, err
		}
		if part == 1 {
			ends = append(ends, projections.Mark{Created: operation.Time(created), Key: projections.Key(key)})
			continue
		}
		row := projections.Row{Partition: projections.Key(key).Partition()}
		if err := projections.DecodeState(state, &row.State); err != nil {
			return nil, nil, err
		}
		hits = append(hits, row)
	}
	return hits, ends, rows.Err()
}

// sameTexts compares what the index only has a hash of.
func sameTexts(f *projections.Filter, row *projections.Row) bool {
	return (f.Organization == "" || row.Org == f.Organization) &&
		(len(f.Types) == 0 || slices.Contains(f.Types, row.Request.Type)) &&
		(f.DependencyToken == "" || row.Request.DependencyToken == f.DependencyToken) &&
		(f.CorrelationID == "" || row.Request.Context != nil && row.Request.Context.CorrelationID == f.CorrelationID)
}

// maxBranches bounds the parts of a walk: each is a walk of its own, and their number is the caller's.
const maxBranches = 64

// walk is a way to the rows of a filter.
type walk struct {
	filter   *projections.Filter
	order    projections.Order
	after    *projections.Mark
	buckets  int
	budget   int
	kinds    []int64
	statuses []int16
	waits    []int16

	on     string // the column that the index begins with, "" for the one by creation
	values []int64
	extra  string // what makes a partial index usable

	args []any
}

func newWalk(f *projections.Filter, order projections.Order, after *projections.Mark, buckets, budget int) *walk {
	w := &walk{filter: f, order: order, after: after, buckets: buckets, budget: budget}
	for _, t := range f.Types {
		w.kinds = append(w.kinds, hash(t))
	}
	for _, s := range f.Statuses {
		w.statuses = append(w.statuses, int16(s))
	}
	for _, x := range f.Waits {
		w.waits = append(w.waits, int16(x))
	}
	for _, list := range []*[]int16{&w.statuses, &w.waits} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	slices.Sort(w.kinds)
	w.kinds = slices.Compact(w.kinds)
	return w
}

func (w *walk) along(column, extra string, values ...int64) {
	w.on, w.extra, w.values = column, extra, values
}

func (w *walk) alongStatus() {
	values := make([]int64, len(w.statuses))
	for i, s := range w.statuses {
		values[i] = int64(s)
	}
	w.along("status", "", values...)
}

// statusesListed asks whether operation_statuses is up to date.
const statusesListed = "SELECT NOT EXISTS (SELECT 1 FROM positions WHERE listed IS DISTINCT FROM next)"

// choose takes the index along which the fewest rows lie; where there is a choice, the counts tell.
func (s *Store) choose(ctx context.Context, w *walk) error {
	f := w.filter
	switch {
	case f.CorrelationID != "":
		w.along("correlation", " AND correlation IS NOT NULL", hash(f.CorrelationID))
		return nil
	case f.DependencyToken != "":
		w.along("token", " AND token IS NOT NULL", hash(f.DependencyToken))
		return nil
	}
	byKind := len(w.kinds) > 0 && len(w.kinds)*w.buckets <= maxBranches
	byStatus := len(w.statuses) > 0 && !slices.Contains(w.statuses, int16(operation.StatusSucceeded))
	if byStatus {
		// Where an older version has written last, until this one writes.
		if err := s.pool.QueryRow(ctx, statusesListed).Scan(&byStatus); err != nil {
			return err
		}
	}
	switch {
	case f.Organization == "" && !byKind && !byStatus:
		return nil
	case f.Organization == "" && !byStatus:
		w.along("type", "", w.kinds...)
		return nil
	case f.Organization == "" && !byKind:
		w.alongStatus()
		return nil
	case f.Organization != "" && !byKind && !byStatus:
		w.along("org", "", hash(f.Organization))
		return nil
	}
	counts, err := scanCounts(s.pool.Query(ctx, fmt.Sprintf(selectCounts, "org = 0 OR org = $1"), hash(f.Organization)))
	if err != nil {
		return err
	}
	var ofOrg, ofKinds, ofStatuses int64
	for _, c := range counts {
		switch {
		case c.Organization != "" && c.Organization == f.Organization:
			ofOrg += c.N
		case c.Organization == "":
			if slices.Contains(f.Types, c.Type) {
				ofKinds += c.N
			}
			if slices.Contains(f.Statuses, c.Status) {
				ofStatuses += c.N
			}
		}
	}
	w.pick(byKind, byStatus, ofOrg, ofKinds, ofStatuses)
	return nil
}

// pick takes the shortest way of those that there are.
func (w *walk) pick(byKind, byStatus bool, ofOrg, ofKinds, ofStatuses int64) {
	best := int64(-1)
	if w.filter.Organization != "" {
		best = ofOrg
		w.along("org", "", hash(w.filter.Organization))
	}
	if byKind && (best < 0 || ofKinds < best) {
		best = ofKinds
		w.along("type", "", w.kinds...)
	}
	if byStatus && (best < 0 || ofStatuses < best) {
		w.alongStatus()
	}
}

// arg adds an argument and returns its place in the text.
func (w *walk) arg(v any) string {
	w.args = append(w.args, v)
	return "$" + strconv.Itoa(len(w.args))
}

func (w *walk) ordering() string {
	if w.order == projections.OldestFirst {
		return " ORDER BY created, key"
	}
	return " ORDER BY created DESC, key DESC"
}

// steps is the walk itself: at most limit rows, in the order of the list. Each branch is one range of one index, read from one
// end, and is bounded by itself, whatever the planner thinks of the whole.
func (w *walk) steps(columns string, limit int) string {
	var common strings.Builder
	f := w.filter
	if f.CreatedFrom != 0 {
		common.WriteString(" AND created >= " + w.arg(int64(f.CreatedFrom)) + "::bigint")
	}
	if f.CreatedTo != 0 {
		common.WriteString(" AND created < " + w.arg(int64(f.CreatedTo)) + "::bigint")
	}
	if w.after != nil {
		beyond := "<"
		if w.order == projections.OldestFirst {
			beyond = ">"
		}
		common.WriteString(" AND (created, key) " + beyond + " (" + w.arg(int64(w.after.Created)) + "::bigint, " + w.arg(int64(w.after.Key)) + "::bigint)")
	}
	values := w.values
	if w.on == "" {
		values = []int64{0}
	}
	end := w.ordering() + " LIMIT " + strconv.Itoa(limit)
	var branches []string
	for _, value := range values {
		condition := ""
		if w.on != "" {
			condition = w.on + " = " + w.arg(value) + "::bigint" + w.extra + " AND "
		}
		for bucket := range w.buckets {
			from := " WHERE " + condition + "bucket = " + strconv.Itoa(bucket) + common.String() + end
			if w.on == "status" {
				// The limit of one row keeps PostgreSQL from reading all operations to join them.
				branches = append(branches, "SELECT "+columns+" FROM (SELECT bucket, created, key FROM operation_statuses"+from+`) AS s
					CROSS JOIN LATERAL (SELECT org, type, status, wait, modified, token, state FROM operations AS o WHERE o.bucket = s.bucket AND o.key = s.key LIMIT 1) AS o`+w.ordering())
				continue
			}
			branches = append(branches, "SELECT "+columns+" FROM operations"+from)
		}
	}
	if len(branches) == 1 {
		return branches[0]
	}
	return "SELECT * FROM ((" + strings.Join(branches, ") UNION ALL (") + ")) AS b" + end
}

// residual says whether rows of the walk may fail the filter.
func (w *walk) residual() bool { return w.passes() != "" }

// passes is the part of the filter that the walk does not see to.
func (w *walk) passes() string {
	f := w.filter
	var all []string
	if f.Organization != "" && w.on != "org" {
		all = append(all, "org = "+w.arg(hash(f.Organization))+"::bigint")
	}
	if len(w.kinds) > 0 && w.on != "type" {
		all = append(all, "type = ANY("+w.arg(w.kinds)+"::bigint[])")
	}
	if len(w.statuses) > 0 && w.on != "status" {
		all = append(all, "status = ANY("+w.arg(w.statuses)+"::smallint[])")
	}
	if len(w.waits) > 0 {
		all = append(all, "wait = ANY("+w.arg(w.waits)+"::smallint[])")
	}
	if f.DependencyToken != "" && w.on != "token" {
		all = append(all, "token = "+w.arg(hash(f.DependencyToken))+"::bigint")
	}
	if f.ModifiedFrom != 0 {
		all = append(all, "modified >= "+w.arg(int64(f.ModifiedFrom))+"::bigint")
	}
	if f.ModifiedTo != 0 {
		all = append(all, "modified < "+w.arg(int64(f.ModifiedTo))+"::bigint")
	}
	if len(all) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(all, " AND ")
}

const walkColumns = "bucket, created, key, org, type, status, wait, modified, token"

// page asks for the first rows of the walk that pass. The database stops at the last of them.
func (w *walk) page(limit int) (string, []any) {
	bound := w.budget
	if !w.residual() {
		bound = limit
	}
	w.args = nil
	return "SELECT created, key, state, 0 AS part FROM (" + w.steps(walkColumns+", state", bound) + ") AS w" + w.passes() + w.ordering() + " LIMIT " + strconv.Itoa(limit), w.args
}

// pageAndEnd asks for them, and for the last row of the walk and the one beyond it, if the walk is shorter than the list.
func (w *walk) pageAndEnd(limit int) (string, []any) {
	w.args = nil
	return "WITH w AS (" + w.steps(walkColumns, w.budget+1) + "), seen AS (SELECT * FROM w" + w.ordering() + " LIMIT " + strconv.Itoa(w.budget) +
		"), hits AS (SELECT * FROM seen" + w.passes() + w.ordering() + " LIMIT " + strconv.Itoa(limit) + `)
		SELECT created, key, (SELECT o.state FROM operations o WHERE o.bucket = hits.bucket AND o.key = hits.key) AS state, 0 AS part FROM hits
		UNION ALL SELECT created, key, NULL, 1 FROM (SELECT created, key FROM w` + w.ordering() + " OFFSET " + strconv.Itoa(w.budget-1) + " LIMIT 2) AS e ORDER BY part, " + strings.TrimPrefix(w.ordering(), " ORDER BY "), w.args
}
