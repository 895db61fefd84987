// Package projectiontest holds what every store of projections must pass.
package projectiontest

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
	"github.com/opstream/opstream/projections"
)

// Run runs the suite. open returns an empty store, which the suite closes.
func Run(t *testing.T, open func(t *testing.T) projections.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, projections.Store)
	}{
		{"an empty store", testEmpty},
		{"histories, written in batches and folded one by one", TestHistories},
		{"what comes twice changes nothing", testTwice},
		{"from zero the tables are the same", testFromZero},
		{"a batch is written as a whole or not at all", testWhole},
		{"a projector that starts anew goes on", testRestart},
		{"lists, cursor by cursor", TestLists},
		{"cursors that the list did not give", testCursors},
		{"edges", testEdges},
		{"a deleted operation", testDeleted},
		{"an event of an unknown operation", testUnknown},
		{"verify finds what was changed behind its back", testVerify},
		{"readers while a batch is written", testReaders},
	} {
		t.Run(c.name, func(t *testing.T) {
			store := open(t)
			defer func() {
				if err := store.Close(); err != nil {
					t.Errorf("close the store: %v", err)
				}
			}()
			c.test(t, store)
		})
	}
}

func project(t *testing.T, store projections.Store, j *Journal, r *rand.Rand, largest, live int) {
	t.Helper()
	p := projections.NewProjector(store, live)
	err := j.Batches(r, largest, func(e []projections.Entry, at []projections.Position) error { return p.Project(t.Context(), e, at) })
	if err != nil {
		t.Fatalf("project: %v", err)
	}
}

// dump is the store as text, a line for everything.
func dump(t *testing.T, store projections.Store) string {
	t.Helper()
	var b strings.Builder
	err := store.Dump(t.Context(), projections.Visitor{
		Positions: func(all []projections.Position) error {
			for _, p := range all {
				fmt.Fprintf(&b, "position %d next=%d chain=%q at=%d\n", p.Partition, p.Next, p.Chain, p.At)
			}
			return nil
		},
		Operation: func(row *projections.Row, history []byte) error {
			fmt.Fprintf(&b, "operation %v state=%x request=%q history=%x\n", row.Key(), projections.AppendState(nil, &row.State), row.Request.Raw, history)
			return nil
		},
		Rejection: func(r *projections.Rejection) error {
			fmt.Fprintf(&b, "rejection %+v\n", *r)
			return nil
		},
		Count: func(c projections.Count) error {
			fmt.Fprintf(&b, "count %+v\n", c)
			return nil
		},
		Fault: func(k projections.Key, what string) error {
			t.Errorf("operation %v: %s", k, what)
			return nil
		},
	})
	if err != nil {
		t.Fatalf("dump: %v", err)
	}
	return b.String()
}

func testEmpty(t *testing.T, store projections.Store) {
	ctx := t.Context()
	if _, err := store.Get(ctx, "contoso", "op"); !errors.Is(err, projections.ErrNotFound) {
		t.Errorf("Get: expected ErrNotFound, but got %v", err)
	}
	if _, err := store.History(ctx, "contoso", "op", -1, 10); !errors.Is(err, projections.ErrNotFound) {
		t.Errorf("History: expected ErrNotFound, but got %v", err)
	}
	for _, f := range []projections.Filter{{}, {Organization: "contoso"}, {Types: []string{"workflow"}}, {DependencyToken: "t"}, {Statuses: []operation.Status{operation.StatusReady}}} {
		if page, err := store.List(ctx, f, projections.NewestFirst, "", 10); err != nil || len(page.Rows) != 0 || page.Next != "" {
			t.Errorf("List %+v: expected an empty last page, but got %+v, %v", f, page, err)
		}
	}
	if c, err := store.Counts(ctx, projections.CountFilter{}); err != nil || len(c) != 0 {
		t.Errorf("Counts: expected none, but got %v, %v", c, err)
	}
	if p, err := store.Positions(ctx); err != nil || len(p) != 0 {
		t.Errorf("Positions: expected none, but got %v, %v", p, err)
	}
	if r, err := store.Rejections(ctx, "contoso", "op", 10); err != nil || len(r) != 0 {
		t.Errorf("Rejections: expected none, but got %v, %v", r, err)
	}
	if got := dump(t, store); got != "" {
		t.Errorf("expected an empty dump, but got\n%s", got)
	}
}

// compare checks everything that readers can ask against the model.
func compare(t *testing.T, store projections.Store, j *Journal) {
	t.Helper()
	ctx := t.Context()
	m := modelOf(j)
	names := map[projections.Ref]bool{}
	for _, entries := range j.Entries {
		for _, e := range entries {
			names[projections.Ref{Org: e.Event.Org, ID: e.Event.ID}] = true
		}
	}
	for ref := range names {
		compareOne(t, store, m, ref.Org, ref.ID)
	}
	var refs []projections.Ref
	for ref := range m.latest {
		refs = append(refs, ref)
	}
	rows, err := store.States(ctx, append(refs, projections.Ref{Partition: 1, Org: "nobody", ID: "nothing"}))
	if err != nil || len(rows) != len(refs) {
		t.Fatalf("States: expected %d rows, but got %d, %v", len(refs), len(rows), err)
	}
	for _, row := range rows {
		want := m.rows[m.latest[projections.Ref{Partition: row.Partition, Org: row.Org, ID: row.ID}]]
		if want == nil || !reflect.DeepEqual(row, want.row) {
			t.Fatalf("States: expected %+v, but got %+v", want, row)
		}
	}
	for _, f := range []projections.CountFilter{{}, {PerOrganization: true}, {Organization: "contoso"}, {Organization: Hostile[0]}, {Organization: "nobody"}} {
		counts, err := store.Counts(ctx, f)
		if err != nil {
			t.Fatalf("Counts %+v: %v", f, err)
		}
		got := map[projections.Count]int64{}
		for _, c := range counts {
			n := c.N
			c.N = 0
			got[c] += n
		}
		if want := m.counts(f.Organization, f.PerOrganization); !reflect.DeepEqual(got, want) && len(got)+len(want) > 0 {
			t.Errorf("Counts %+v: expected %v, but got %v", f, want, got)
		}
	}
	report, err := projections.Verify(ctx, store, j)
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	if !report.OK() || report.Operations != int64(len(m.rows)) || report.Rejections != int64(len(m.rejections)) || len(report.Lag) > 0 {
		t.Errorf("expected %d operations and %d rejections without a difference, but got %+v", len(m.rows), len(m.rejections), report)
	}
}

func compareOne(t *testing.T, store projections.Store, m *model, org string, id operation.ID) {
	t.Helper()
	ctx := t.Context()
	want := m.get(org, id)
	got, err := store.Get(ctx, org, id)
	if want == nil {
		if !errors.Is(err, projections.ErrNotFound) {
			t.Errorf("Get %q %q: expected ErrNotFound, but got %+v, %v", org, id, got, err)
		}
	} else {
		if err != nil {
			t.Fatalf("Get %q %q: %v", org, id, err)
		}
		if !bytes.Equal(got.Request.Raw, want.request) {
			t.Errorf("Get %q %q: expected the request %q, but got %q", org, id, want.request, got.Request.Raw)
		}
		got.Request.Raw = nil
		if !reflect.DeepEqual(got, want.row) {
			t.Fatalf("Get %q %q: expected\n%+v %+v, but got\n%+v %+v", org, id, want.row, want.row.Request, got, got.Request)
		}
		var history []projections.Entry
		for after := operation.Place(-1); ; {
			page, err := store.History(ctx, org, id, after, 3)
			if err != nil {
				t.Fatalf("History %q %q: %v", org, id, err)
			}
			history = append(history, page...)
			if len(page) < 3 {
				break
			}
			after = page[len(page)-1].Place
		}
		if !reflect.DeepEqual(history, want.events) {
			t.Fatalf("History %q %q: expected\n%+v, but got\n%+v", org, id, want.events, history)
		}
	}
	var refused []projections.Rejection
	for _, r := range m.rejections {
		if r.Org == org && r.ID == id {
			refused = append(refused, r)
		}
	}
	have, err := store.Rejections(ctx, org, id, projections.MaxLimit)
	if err != nil || len(have) != len(refused) {
		t.Fatalf("Rejections %q %q: expected %d, but got %d, %v", org, id, len(refused), len(have), err)
	}
	for i, r := range have {
		if i > 0 && have[i-1].At < r.At {
			t.Errorf("Rejections %q %q: expected the newest first, but got %+v", org, id, have)
		}
		found := false
		for _, w := range refused {
			found = found || w == r
		}
		if !found {
			t.Errorf("Rejections %q %q: expected one of %+v, but got %+v", org, id, refused, r)
		}
	}
}

// TestHistories is the part of the suite that compares random histories, for stores that can keep them in several ways.
func TestHistories(t *testing.T, store projections.Store) {
	for seed := range uint64(4) {
		if err := store.Reset(t.Context()); err != nil {
			t.Fatalf("reset: %v", err)
		}
		r := rand.New(rand.NewPCG(seed, 1))
		j := Random(seed, 3, 1000)
		largest, live := 1+r.IntN(200), 1+r.IntN(60)
		project(t, store, j, r, largest, live)
		compare(t, store, j)
		if t.Failed() {
			t.Fatalf("seed %d, batches of up to %d events a partition, %d operations remembered", seed, largest, live)
		}
	}
}

func testTwice(t *testing.T, store projections.Store) {
	j := Random(11, 3, 600)
	p := projections.NewProjector(store, 0)
	var first *projections.Batch
	p.OnCommitted = func(b *projections.Batch) {
		if first == nil {
			first = &projections.Batch{Steps: append([]projections.Step{}, b.Steps...), Deleted: []projections.Key{projections.KeyOf(0, 1)}}
		}
	}
	r := rand.New(rand.NewPCG(11, 1))
	again := func() {
		t.Helper()
		if err := j.Batches(r, 50, func(e []projections.Entry, at []projections.Position) error { return p.Project(t.Context(), e, at) }); err != nil {
			t.Fatalf("project: %v", err)
		}
	}
	again()
	want := dump(t, store)
	again()
	if got := dump(t, store); got != want {
		t.Errorf("expected the same tables after all events came again, but they differ:\n%s", apart(want, got))
	}
	p = projections.NewProjector(store, 0) // that has not seen them
	again()
	if got := dump(t, store); got != want {
		t.Errorf("expected the same tables after all events came to another projector, but they differ:\n%s", apart(want, got))
	}
	var moved *projections.PositionError
	if err := store.Apply(t.Context(), first); !errors.As(err, &moved) {
		t.Errorf("expected a PositionError for a batch that was written before, but got %v", err)
	}
	if got := dump(t, store); got != want {
		t.Errorf("expected the same tables after a batch came again, but they differ:\n%s", apart(want, got))
	}
}

// apart shows the first line in which two dumps differ.
func apart(want, got string) string {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("line %d\nexpected %s\nbut got  %s", i+1, a[i], b[i])
		}
	}
	return fmt.Sprintf("expected %d lines, but got %d", len(a), len(b))
}

func testFromZero(t *testing.T, store projections.Store) {
	j := Random(12, 4, 1200)
	project(t, store, j, rand.New(rand.NewPCG(1, 1)), 7, 5)
	want := dump(t, store)
	if err := store.Reset(t.Context()); err != nil {
		t.Fatalf("reset: %v", err)
	}
	if got := dump(t, store); got != "" {
		t.Fatalf("expected nothing after a reset, but got\n%s", got)
	}
	entries, positions := j.All()
	if err := projections.NewProjector(store, 0).Project(t.Context(), entries, positions); err != nil {
		t.Fatalf("project everything at once: %v", err)
	}
	if got := dump(t, store); got != want {
		t.Errorf("expected the same tables from one batch as from many, but they differ:\n%s", apart(want, got))
	}
}

func testWhole(t *testing.T, store projections.Store) {
	j := Random(13, 2, 400)
	project(t, store, j, rand.New(rand.NewPCG(1, 1)), 30, 0)
	want := dump(t, store)
	now := operation.Time(1_900_000_000_000_000)
	row := projections.Row{Partition: 0}
	end := j.ends[0]
	e := operation.Event{Kind: operation.Requested, Org: "contoso", ID: "new", At: now, Request: &operation.Request{Organization: "contoso", ID: "new", Type: "workflow", Raw: []byte("{}")}}
	row.State.Apply(&e, operation.Place(end))
	b := &projections.Batch{
		Changes: []projections.Change{{Row: &row, New: true, Written: true, Request: []byte("{}"), First: operation.Place(end), History: projections.AppendHistory(nil, &e, operation.Place(end))}},
		Counts:  []projections.Count{{Organization: "contoso", Type: "a-type-of-its-own", Status: operation.StatusReady, Wait: operation.WaitResources, N: 1}},
		Steps: []projections.Step{
			{From: end, To: projections.Position{Partition: 0, Next: end + 1, At: now}},
			{From: j.ends[1] + 5, To: projections.Position{Partition: 1, Next: j.ends[1] + 9, At: now}}, // not where the store stands
		},
	}
	var moved *projections.PositionError
	if err := store.Apply(t.Context(), b); !errors.As(err, &moved) || moved.Partition != 1 || moved.Have != j.ends[1] {
		t.Errorf("expected a PositionError for partition 1, which stands at %d, but got %v", j.ends[1], err)
	}
	if got := dump(t, store); got != want {
		t.Errorf("expected nothing of a batch that failed, but the tables differ:\n%s", apart(want, got))
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	b.Steps = b.Steps[:1]
	if err := store.Apply(gone, b); !errors.Is(err, context.Canceled) {
		t.Errorf("expected an ended context to write nothing, but got %v", err)
	}
	// The same key twice: a store must fail or fold, and if it fails, then as a whole.
	b.Rejections = []projections.Rejection{{Partition: 0, Place: 1, Org: "x"}, {Partition: 0, Place: 1, Org: "x"}}
	if err := store.Apply(t.Context(), b); err == nil {
		t.Error("expected two rejections at one place to fail, but they were written")
	}
	if got := dump(t, store); got != want {
		t.Errorf("expected nothing of a batch that failed late, but the tables differ:\n%s", apart(want, got))
	}
	// What a store has learned from a batch that failed it must forget, such as numbers that it gave to names.
	name := func(org string, c *projections.Batch) {
		row.Org, row.Request.Organization, c.Counts[0].Organization = org, org, org
	}
	name("an organization of its own", b)
	if err := store.Apply(t.Context(), b); err == nil {
		t.Error("expected two rejections at one place to fail, but they were written")
	}
	b.Rejections = nil
	name("another organization", b)
	if err := store.Apply(t.Context(), b); err != nil {
		t.Fatalf("expected the batch to be written after its faults were mended, but got %v", err)
	}
	b.Steps[0].From, b.Steps[0].To.Next = end+1, end+2
	row.RequestedPlace = operation.Place(end + 1)
	name("contoso", b)
	if err := store.Apply(t.Context(), b); err != nil {
		t.Fatalf("expected the next batch to be written, but got %v", err)
	}
	b.Steps[0].From, b.Steps[0].To.Next = end+2, end+3
	row.RequestedPlace = operation.Place(end + 2)
	name("an organization of its own", b)
	if err := store.Apply(t.Context(), b); err != nil {
		t.Fatalf("expected the next batch to be written, but got %v", err)
	}
	dump(t, store) // fails if columns say another organization than states
	if _, err := store.Get(t.Context(), "contoso", "new"); err != nil {
		t.Errorf("Get: %v", err)
	}
}

func testRestart(t *testing.T, store projections.Store) {
	j := Random(14, 3, 900)
	r := rand.New(rand.NewPCG(14, 1))
	err := j.Batches(r, 20, func(e []projections.Entry, at []projections.Position) error {
		return projections.NewProjector(store, 0).Project(t.Context(), e, at) // remembers nothing
	})
	if err != nil {
		t.Fatalf("project: %v", err)
	}
	compare(t, store, j)
}

// TestLists is the part of the suite that lists, for stores that can go about it in several ways.
func TestLists(t *testing.T, store projections.Store) {
	j := Random(15, 3, 2000)
	r := rand.New(rand.NewPCG(15, 1))
	project(t, store, j, r, 300, 0)
	m := modelOf(j)
	all := m.sorted(projections.OldestFirst)
	instant := func() operation.Time { return all[r.IntN(len(all))].row.CreatedAt }
	for i := range 100 {
		var f projections.Filter
		if r.IntN(2) == 0 {
			f.Organization = []string{"contoso", "fabrikam", Hostile[0], "nobody"}[r.IntN(4)]
		}
		for range r.IntN(3) {
			f.Statuses = append(f.Statuses, operation.Status(1+r.IntN(9)))
		}
		for range max(0, r.IntN(5)-3) {
			f.Waits = append(f.Waits, operation.Wait(r.IntN(7)))
		}
		for range max(0, r.IntN(5)-2) {
			f.Types = append(f.Types, []string{"workflow", "bulk-delete", "helpdesk.close-ticket", "none"}[r.IntN(4)])
		}
		switch r.IntN(8) {
		case 0:
			f.DependencyToken = []string{"token", Hostile[1], "none"}[r.IntN(3)]
		case 1:
			f.CorrelationID = []string{"correlation", Hostile[2], "none"}[r.IntN(3)]
		case 2:
			f.CreatedFrom = instant()
		case 3:
			f.CreatedFrom, f.CreatedTo = instant(), instant()
		case 4:
			f.ModifiedTo = instant()
		case 5:
			f.ModifiedFrom = instant()
		}
		order := projections.Order(r.IntN(2))
		want := m.list(f, order)
		limit := 1 + r.IntN(40)
		var got []projections.Row
		for cursor, pages := "", 0; ; pages++ {
			page, err := store.List(t.Context(), f, order, cursor, limit)
			if err != nil {
				t.Fatalf("list %d %+v: %v", i, f, err)
			}
			if len(page.Rows) > limit || pages > len(all)+1 {
				t.Fatalf("list %d %+v: expected at most %d rows a page and an end, but got %d rows on page %d", i, f, limit, len(page.Rows), pages)
			}
			got = append(got, page.Rows...)
			if cursor = page.Next; cursor == "" {
				break
			}
		}
		if len(got) != len(want) || len(got) > 0 && !reflect.DeepEqual(got, want) {
			t.Errorf("list %d %+v order %d: expected %d rows %v, but got %d rows %v", i, f, order, len(want), keys(want), len(got), keys(got))
		}
	}
}

func keys(rows []projections.Row) []projections.Key {
	var out []projections.Key
	for i := range rows {
		out = append(out, rows[i].Key())
	}
	return out
}

func testCursors(t *testing.T, store projections.Store) {
	j := Random(16, 2, 300)
	project(t, store, j, rand.New(rand.NewPCG(1, 1)), 100, 0)
	f := projections.Filter{Organization: "contoso"}
	page, err := store.List(t.Context(), f, projections.NewestFirst, "", 1)
	if err != nil || page.Next == "" {
		t.Fatalf("expected a page with a next one, but got %+v, %v", page, err)
	}
	good := page.Next
	bad := []string{"x", "%", good[1:], good + "A", strings.Repeat("A", len(good)), strings.ToUpper(good), strings.Repeat("=", len(good)), strings.Repeat("€", 10)}
	raw, err := base64.RawURLEncoding.DecodeString(good)
	if err != nil {
		t.Fatalf("expected a cursor in base64url, but got %q", good)
	}
	for i := range raw {
		changed := bytes.Clone(raw)
		changed[i] ^= 0x10
		bad = append(bad, base64.RawURLEncoding.EncodeToString(changed))
	}
	for _, cursor := range bad {
		_, err := store.List(t.Context(), f, projections.NewestFirst, cursor, 1)
		var wrong *projections.CursorError
		if !errors.As(err, &wrong) || wrong.Code() != projections.CodeInvalidCursor {
			t.Errorf("cursor %q: expected a CursorError, but got %v", cursor, err)
		}
	}
	var wrong *projections.CursorError
	if _, err := store.List(t.Context(), f, projections.OldestFirst, good, 1); !errors.As(err, &wrong) {
		t.Errorf("expected a CursorError for another order, but got %v", err)
	}
	if _, err := store.List(t.Context(), projections.Filter{}, projections.NewestFirst, good, 1); !errors.As(err, &wrong) {
		t.Errorf("expected a CursorError for another filter, but got %v", err)
	}
	if _, err := store.List(t.Context(), f, projections.NewestFirst, good, math.MaxInt); err != nil {
		t.Errorf("expected a huge limit to be brought into bounds, but got %v", err)
	}
	if _, err := store.List(t.Context(), f, projections.NewestFirst, good, math.MinInt); err != nil {
		t.Errorf("expected a negative limit to be brought into bounds, but got %v", err)
	}
}

// testEdges writes the greatest, the smallest and the emptiest values that fit.
func testEdges(t *testing.T, store projections.Store) {
	ctx := t.Context()
	long := strings.Repeat("x", 70_000)
	texts := append([]string{"", "plain", long}, Hostile...)
	j := NewJournal(1)
	p := projections.NewProjector(store, 0)
	var entries []projections.Entry
	place := operation.Place(0)
	for i, text := range texts {
		for k, at := range []operation.Time{math.MinInt64, -1, 1, math.MaxInt64} {
			q := &operation.Request{
				ID: operation.ID(fmt.Sprintf("%s%d", text, k)), Organization: "o" + text, Type: "t" + text, Name: text, DependencyToken: text, ExplicitKey: text,
				Priority: math.MinInt8, PostponeUntil: at, TimeLimit: math.MaxInt64, Raw: [][]byte{{}, nil, []byte(text)}[i%3],
				Retry:   &retry.Policy{MaxAttempts: math.MaxInt, Initial: math.MinInt64, Max: math.MaxInt64, Multiplier: math.Inf(1), Jitter: math.SmallestNonzeroFloat64, GiveUpAfter: -1},
				Context: &operation.Context{CorrelationID: text, RequestID: text, Depth: math.MinInt32, MessageName: text, PrimaryEntityType: text, RegardingType: text, RegardingID: text, RegardingName: text, OwnerID: text, CallerOrigin: text, CreatedBy: text},
			}
			e := operation.Event{Org: q.Organization, ID: q.ID, At: at, Cause: operation.Cause{Topic: text, Offset: math.MinInt64}, CommandID: text, By: operation.By{Who: text, Reason: text}}
			add := func(kind operation.EventKind, change func(*operation.Event)) {
				e := e
				e.Kind = kind
				change(&e)
				entries = append(entries, projections.Entry{Partition: 0, Place: place, Event: e})
				place++
			}
			add(operation.Requested, func(e *operation.Event) { e.Request, e.Holds, e.Until, e.Upstream = q, 255, at, operation.ID(text) })
			add(operation.Dispatched, func(e *operation.Event) {
				e.Attempt, e.Session = math.MaxUint32, operation.SessionID(text)
			})
			add(operation.Progressed, func(e *operation.Event) { e.Progress, e.Carry = []byte{}, []byte(text) })
			add(operation.AttemptFailed, func(e *operation.Event) {
				e.Failure = &operation.Failure{Code: text, ErrorCode: math.MinInt32, Message: text, FriendlyMessage: text, Class: retry.Suspend}
				e.Holds, e.Until, e.Reason = operation.HoldPaused, at, text
			})
			add(operation.Rejected, func(e *operation.Event) { e.Command, e.Code, e.Reason = operation.Cancel, "no", text })
			add(operation.Rejected, func(e *operation.Event) { e.ID, e.Code, e.Reason = e.ID+"-unknown", "no", text })
		}
	}
	// The last event stands at the last place that there is.
	entries = append(entries, projections.Entry{Partition: 0, Place: projections.MaxPlace, Event: operation.Event{Kind: operation.Opened, At: math.MaxInt64}})
	j.Entries[0], j.ends[0] = entries, int64(projections.MaxPlace)+1
	if err := p.Project(ctx, entries, []projections.Position{j.Position(0, j.ends[0])}); err != nil {
		t.Fatalf("project: %v", err)
	}
	compare(t, store, j)
	for _, text := range texts[1:] {
		page, err := store.List(ctx, projections.Filter{Organization: "o" + text, Types: []string{"t" + text}, DependencyToken: text, CorrelationID: text}, projections.OldestFirst, "", 10)
		if err != nil || len(page.Rows) != 4 {
			t.Errorf("list %.40q: expected 4 operations, but got %d, %v", text, len(page.Rows), err)
		}
	}
	for _, e := range []projections.Entry{{Partition: -1}, {Partition: projections.MaxPartition + 1}, {Partition: 1, Place: projections.MaxPlace + 1}, {Partition: 1, Place: -1}} {
		if err := p.Project(ctx, []projections.Entry{e}, []projections.Position{{Partition: e.Partition, Next: math.MaxInt64}}); err == nil {
			t.Errorf("expected an error for an event at %d of partition %d, but got none", e.Place, e.Partition)
		}
	}
}

func testDeleted(t *testing.T, store projections.Store) {
	ctx := t.Context()
	j := NewJournal(1)
	at := operation.Time(1_800_000_000_000_000)
	add := func(kind operation.EventKind, id operation.ID, change func(*operation.Event)) {
		e := operation.Event{Kind: kind, Org: "contoso", ID: id, At: at}
		at++
		if change != nil {
			change(&e)
		}
		j.Append(0, e)
	}
	request := func(e *operation.Event) {
		e.Request = &operation.Request{Organization: "contoso", ID: e.ID, Type: "workflow", Raw: []byte("{}")}
	}
	add(operation.Requested, "a", request)
	add(operation.Canceled, "a", nil)
	add(operation.Requested, "b", request)
	add(operation.Deleted, "a", nil)
	add(operation.Rejected, "a", func(e *operation.Event) { e.Command, e.Code = operation.Cancel, operation.WasDeleted })
	add(operation.Unchanged, "a", func(e *operation.Event) { e.Command = operation.Delete })
	add(operation.Requested, "a", request) // long after: the same name anew
	for _, size := range []int{1, 2, 3, 7} {
		if err := store.Reset(ctx); err != nil {
			t.Fatalf("reset: %v", err)
		}
		p := projections.NewProjector(store, 0)
		for from := 0; from < 7; from += size {
			to := min(from+size, 7)
			if err := p.Project(ctx, j.Entries[0][from:to], []projections.Position{j.Position(0, int64(to))}); err != nil {
				t.Fatalf("batches of %d: %v", size, err)
			}
			if size == 1 && to == 6 {
				if _, err := store.Get(ctx, "contoso", "a"); !errors.Is(err, projections.ErrNotFound) {
					t.Errorf("expected the deleted operation not to be found, but got %v", err)
				}
			}
		}
		compare(t, store, j)
	}
}

func testUnknown(t *testing.T, store projections.Store) {
	p := projections.NewProjector(store, 0)
	e := projections.Entry{Event: operation.Event{Kind: operation.Succeeded, Org: "contoso", ID: "never requested", At: 1}}
	var unknown *projections.UnknownOperationError
	if err := p.Project(t.Context(), []projections.Entry{e}, []projections.Position{{Next: 1}}); !errors.As(err, &unknown) {
		t.Errorf("expected an UnknownOperationError, but got %v", err)
	}
	if got := dump(t, store); got != "" {
		t.Errorf("expected nothing to be written, but got\n%s", got)
	}
}

func testVerify(t *testing.T, store projections.Store) {
	ctx := t.Context()
	j := Random(17, 3, 500)
	p := projections.NewProjector(store, 0)
	entries, positions := j.All()
	if err := p.Project(ctx, entries, positions); err != nil {
		t.Fatalf("project: %v", err)
	}
	for _, c := range []struct {
		what   string
		change func(*projections.Batch)
	}{
		{"a row more", func(b *projections.Batch) {
			row := projections.Row{Partition: 0}
			row.State.Apply(&operation.Event{Kind: operation.Requested, Org: "x", ID: "y", At: 5, Request: &operation.Request{Organization: "x", ID: "y", Type: "workflow"}}, operation.Place(j.ends[0]+1))
			b.Changes = []projections.Change{{Row: &row, New: true, Written: true}}
		}},
		{"a row less", func(b *projections.Batch) { b.Deleted = []projections.Key{someKey(j)} }},
		{"a state that changed", func(b *projections.Batch) {
			row := modelOf(j).rows[someKey(j)].row
			row.Failures += 7
			b.Changes = []projections.Change{{Row: &row, Was: row.Status, Written: true}}
		}},
		{"a request that changed", func(b *projections.Batch) {
			row := modelOf(j).rows[someKey(j)].row
			b.Changes = []projections.Change{{Row: &row, Was: row.Status, Written: true, Request: []byte("forged")}}
		}},
		{"an event more", func(b *projections.Batch) {
			row := modelOf(j).rows[someKey(j)].row
			place := operation.Place(j.ends[0] + 5)
			b.Changes = []projections.Change{{Row: &row, First: place, History: projections.AppendHistory(nil, &operation.Event{Kind: operation.Rejected}, place)}}
		}},
		{"a count", func(b *projections.Batch) {
			b.Counts = []projections.Count{{Organization: "contoso", Type: "workflow", Status: operation.StatusReady, N: 1}}
		}},
		{"a rejection more", func(b *projections.Batch) {
			b.Rejections = []projections.Rejection{{Partition: 0, Place: operation.Place(j.ends[0] + 9), Org: "x"}}
		}},
		{"a position", func(b *projections.Batch) {
			b.Steps = []projections.Step{{From: j.ends[0], To: projections.Position{Partition: 0, Next: j.ends[0] + 1, Chain: []byte("forged")}}}
		}},
	} {
		if err := store.Reset(ctx); err != nil {
			t.Fatalf("reset: %v", err)
		}
		p := projections.NewProjector(store, 0)
		if err := p.Project(ctx, entries, positions); err != nil {
			t.Fatalf("project: %v", err)
		}
		if report, err := projections.Verify(ctx, store, j); err != nil || !report.OK() {
			t.Fatalf("expected no difference before the change, but got %+v, %v", report, err)
		}
		var b projections.Batch
		c.change(&b)
		if err := store.Apply(ctx, &b); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		report, err := projections.Verify(ctx, store, j)
		if err != nil || report.OK() || len(report.Differences) == 0 || report.Differences[0].Want == report.Differences[0].Have {
			t.Errorf("%s: expected a difference, but got %+v, %v", c.what, report, err)
		}
	}
	// Tables that are behind are right as far as they go.
	if err := store.Reset(ctx); err != nil {
		t.Fatalf("reset: %v", err)
	}
	half := int64(j.Entries[0][len(j.Entries[0])/2].Place)
	if err := projections.NewProjector(store, 0).Project(ctx, j.Entries[0][:len(j.Entries[0])/2], []projections.Position{j.Position(0, half)}); err != nil {
		t.Fatalf("project: %v", err)
	}
	report, err := projections.Verify(ctx, store, j)
	if err != nil || !report.OK() || report.Lag[0] != j.ends[0]-half || report.Lag[1] != j.ends[1] {
		t.Errorf("expected half a partition to be right and the lag to be told, but got %+v, %v", report, err)
	}
}

func someKey(j *Journal) projections.Key {
	rows := modelOf(j).sorted(projections.OldestFirst)
	return rows[len(rows)/2].row.Key()
}

// testReaders reads while batches are written: every page and every count must be of one moment.
func testReaders(t *testing.T, store projections.Store) {
	j := Random(18, 3, 1000)
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	read, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(failed)
		first := true
		for ctx.Err() == nil {
			var rows, counted int64
			err := store.Dump(ctx, projections.Visitor{
				Operation: func(*projections.Row, []byte) error { rows++; return nil },
				Count: func(c projections.Count) error {
					if c.Organization == "" {
						counted += c.N
					}
					return nil
				},
			})
			if err == nil && rows != counted {
				err = fmt.Errorf("expected as many rows as are counted, but got %d rows and %d counted", rows, counted)
			}
			if err == nil {
				_, err = store.List(ctx, projections.Filter{Organization: "contoso"}, projections.NewestFirst, "", 50)
			}
			if err != nil && ctx.Err() == nil {
				failed <- err
				return
			}
			if first {
				first = false
				close(read)
			}
		}
	}()
	<-read
	project(t, store, j, rand.New(rand.NewPCG(1, 1)), 20, 0)
	stop()
	if err := <-failed; err != nil {
		t.Errorf("read while writing: %v", err)
	}
}
