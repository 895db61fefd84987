package cockroach

import (
	"fmt"
	"strings"
	"testing"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/pgtest"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/projectiontest"
)

func exec(t *testing.T, store *Store, query string, args ...any) {
	t.Helper()
	if _, err := store.pool.Exec(t.Context(), query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// byStatus lists everything that has not succeeded, one status after the other, and expects as much as is counted.
func byStatus(t *testing.T, store *Store) {
	t.Helper()
	want := map[operation.Status]int64{}
	counts, err := store.Counts(t.Context(), projections.CountFilter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range counts {
		want[c.Status] += c.N
	}
	for status := operation.StatusAbsent + 1; status < operation.StatusDeleted; status++ {
		if status == operation.StatusSucceeded {
			continue
		}
		have, cursor := int64(0), ""
		for {
			page, err := store.List(t.Context(), projections.Filter{Statuses: []operation.Status{status}}, projections.OldestFirst, cursor, 7)
			if err != nil {
				t.Fatal(err)
			}
			for i := range page.Rows {
				if page.Rows[i].Status != status {
					t.Errorf("expected operations that are %s, but got %s, which is %s", status, page.Rows[i].ID, page.Rows[i].Status)
				}
			}
			have += int64(len(page.Rows))
			if cursor = page.Next; cursor == "" {
				break
			}
		}
		if have != want[status] {
			t.Errorf("expected %d operations that are %s, but got %d", want[status], status, have)
		}
	}
}

// TestOlderVersionWrites: while a version that does not list statuses writes, lists are right by another way, and the first batch
// of this version makes up for it.
func TestOlderVersionWrites(t *testing.T) {
	atEach(t, func(t *testing.T, address, _ string) {
		store := opened(t, address, Options{})
		j, halves := some(t)
		p := projections.NewProjector(store, 0)
		if err := halves[0](t.Context(), p); err != nil {
			t.Fatal(err)
		}
		byStatus(t, store)
		for _, what := range []string{
			"DELETE FROM operation_statuses", // what an older version has made from the beginning
			"INSERT INTO operation_statuses SELECT 1, 0, 5, n FROM generate_series(1, 50) AS n", // what it has changed since
		} {
			exec(t, store, what)
			exec(t, store, "UPDATE positions SET listed = CASE WHEN partition = 0 THEN NULL ELSE next - 1 END")
			byStatus(t, store)
			if report, err := projections.Verify(t.Context(), store, j); err != nil || !report.OK() {
				t.Errorf("%s: expected nothing to be wrong with tables that an older version writes, but got %+v, %v", what, report, err)
			}
		}
		if err := halves[1](t.Context(), p); err != nil {
			t.Fatal(err)
		}
		var listed bool
		if err := store.pool.QueryRow(t.Context(), statusesListed).Scan(&listed); err != nil || !listed {
			t.Errorf("expected the statuses to be listed again, but got %t, %v", listed, err)
		}
		byStatus(t, store)
		verified(t, store, j)

		for _, wrong := range []string{
			"DELETE FROM operation_statuses WHERE key = (SELECT min(key) FROM operation_statuses)",
			"INSERT INTO operation_statuses VALUES (1, 0, 5, 5)",
		} {
			exec(t, store, wrong)
			report, err := projections.Verify(t.Context(), store, j)
			if err != nil || report.OK() || !strings.Contains(report.Differences[0].What+report.Differences[0].Have, "listed by status") {
				t.Errorf("%s: expected the difference to be found, but got %+v, %v", wrong, report, err)
			}
			exec(t, store, "UPDATE positions SET listed = NULL")
			f, err := store.ready(t.Context())
			if err == nil {
				err = store.listStatuses(t.Context(), f)
			}
			if err != nil {
				t.Fatal(err)
			}
			verified(t, store, j)
		}
	})
}

// TestWronglyListed: a status that is listed before its time does not keep the operation from getting there.
func TestWronglyListed(t *testing.T) {
	store := opened(t, pgtest.Postgres(t), Options{})
	j, halves := some(t)
	p := projections.NewProjector(store, 0)
	if err := halves[0](t.Context(), p); err != nil {
		t.Fatal(err)
	}
	for status := operation.StatusAbsent + 1; status < operation.StatusDeleted; status++ {
		exec(t, store, fmt.Sprintf("INSERT INTO operation_statuses SELECT %d, bucket, created, key FROM operations ON CONFLICT DO NOTHING", status))
	}
	if err := halves[1](t.Context(), p); err != nil {
		t.Fatal(err)
	}
	verified(t, store, j)
}

// TestRowsChangeInPlace: an operation that is written when it is requested and again when it has ended is in no index twice.
func TestRowsChangeInPlace(t *testing.T) {
	address := pgtest.Postgres(t)
	store := opened(t, address, Options{})
	p, j := projections.NewProjector(store, 0), projectiontest.NewJournal(1)
	const operations = 5000
	id := func(i int) operation.ID { return operation.ID(fmt.Sprint("op-", i)) }
	for i := range operations {
		q := &operation.Request{Organization: "contoso", ID: id(i), Type: "workflow", Raw: fmt.Appendf(nil, `{"data":"%0200d"}`, i)}
		j.Append(0, operation.Event{Kind: operation.Requested, Org: "contoso", ID: q.ID, At: operation.Time(i + 1), Request: q})
	}
	entries, positions := j.All()
	if err := p.Project(t.Context(), entries, positions); err != nil {
		t.Fatal(err)
	}
	for i := range operations {
		for _, kind := range []operation.EventKind{operation.Dispatched, operation.Started, operation.Succeeded} {
			j.Append(0, operation.Event{Kind: kind, Org: "contoso", ID: id(i), At: operation.Time(operations + i), Attempt: 1, Session: "s"})
		}
	}
	all, positions := j.All()
	if err := p.Project(t.Context(), all[len(entries):], positions); err != nil {
		t.Fatal(err)
	}
	verified(t, store, j)
	if err := store.Close(); err != nil { // its sessions tell what they have done when they end
		t.Fatal(err)
	}
	other := opened(t, address, Options{})
	waitAlone(t, other)
	var changed, inPlace int64
	if err := other.pool.QueryRow(t.Context(), "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'operations'").Scan(&changed, &inPlace); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d rows changed, %d in place", changed, inPlace)
	if changed != operations || inPlace < changed*9/10 {
		t.Errorf("expected %d rows to change, nine of ten of them in place, but %d of %d did", operations, inPlace, changed)
	}
}

// TestVerifyFindsWhatOnlySomeReadsFind puts rows where a list does not look, but a read by id does, or the other way round.
func TestVerifyFindsWhatOnlySomeReadsFind(t *testing.T) {
	store := opened(t, pgtest.Postgres(t), Options{Buckets: 3})
	j, halves := some(t)
	if err := halves[1](t.Context(), projections.NewProjector(store, 0)); err != nil {
		t.Fatal(err)
	}
	verified(t, store, j)
	for _, c := range []struct{ change, back, want string }{
		{
			"INSERT INTO operations SELECT 3, status, wait, key + 1, org, type, created, modified, id_hash, token, correlation, state, history, request FROM operations ORDER BY key DESC LIMIT 1",
			"DELETE FROM operations WHERE bucket = 3", "a row of operations is where no list looks",
		},
		{
			"INSERT INTO operations SELECT bucket, status, wait, -key, org, type, created, modified, id_hash, token, correlation, state, history, request FROM operations ORDER BY key DESC LIMIT 1",
			"DELETE FROM operations WHERE key < 0", "a row of operations is where no list looks",
		},
		{
			"INSERT INTO rejections SELECT -1, key, id_hash, at, body FROM rejections ORDER BY key LIMIT 1",
			"DELETE FROM rejections WHERE bucket = -1", "a row of rejections is where no list looks",
		},
		{
			"UPDATE rejections SET id_hash = id_hash - 1 WHERE key = (SELECT min(key) FROM rejections)",
			"UPDATE rejections SET id_hash = id_hash + 1 WHERE key = (SELECT min(key) FROM rejections)", "a rejection is not found by its id",
		},
		{
			"UPDATE rejections SET bucket = (bucket + 1) % 3 WHERE key = (SELECT min(key) FROM rejections)",
			"UPDATE rejections SET bucket = (bucket + 2) % 3 WHERE key = (SELECT min(key) FROM rejections)", "a rejection is not found by its id",
		},
		{"UPDATE counts SET org = -org WHERE org <> 0", "UPDATE counts SET org = -org WHERE org <> 0", "stands under another name"},
		{"UPDATE counts SET slot = slot || 'x'", "UPDATE counts SET slot = substring(slot from 1 for 16)", "stands under another name"},
	} {
		exec(t, store, c.change)
		report, err := projections.Verify(t.Context(), store, j)
		if err != nil || report.OK() || !strings.Contains(report.Differences[len(report.Differences)-1].Have, c.want) {
			t.Errorf("%s: expected that %s, but got %+v, %v", c.change, c.want, report, err)
		}
		exec(t, store, c.back)
		verified(t, store, j)
	}
}
