package projectiontest

import (
	"cmp"
	"slices"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/projections"
)

// model is the tables as simply as they can be had: all events in a slice, all rows in a map.
type model struct {
	rows       map[projections.Key]*modelRow
	latest     map[projections.Ref]projections.Key
	rejections []projections.Rejection
}

type modelRow struct {
	row     projections.Row // without the request's payload
	request []byte
	events  []projections.Entry
}

func modelOf(j *Journal) *model {
	m := &model{rows: map[projections.Key]*modelRow{}, latest: map[projections.Ref]projections.Key{}}
	for _, entries := range j.Entries {
		for _, e := range entries {
			m.apply(e)
		}
	}
	return m
}

func (m *model) apply(e projections.Entry) {
	ref := projections.Ref{Partition: e.Partition, Org: e.Event.Org, ID: e.Event.ID}
	kind := e.Event.Kind
	if !kind.Changes() && kind != operation.Rejected && kind != operation.Unchanged {
		return
	}
	if kind == operation.Requested {
		m.latest[ref] = projections.KeyOf(e.Partition, e.Place)
		m.rows[m.latest[ref]] = &modelRow{row: projections.Row{Partition: e.Partition}}
	}
	key, ok := m.latest[ref]
	if !ok {
		if kind == operation.Rejected {
			m.rejections = append(m.rejections, projections.Rejection{
				Partition: e.Partition, Place: e.Place, Org: e.Event.Org, ID: e.Event.ID, At: e.Event.At, Command: e.Event.Command,
				CommandID: e.Event.CommandID, Code: e.Event.Code, Reason: e.Event.Reason, By: e.Event.By, Cause: e.Event.Cause,
			})
		}
		return
	}
	r := m.rows[key]
	r.row.State.Apply(&e.Event, e.Place)
	if r.row.Status == operation.StatusDeleted {
		delete(m.rows, key)
		delete(m.latest, ref)
		return
	}
	if e.Event.Request != nil {
		r.request = e.Event.Request.Raw
		bare := *e.Event.Request
		bare.Raw, bare.Data = nil, nil
		r.row.Request = &bare
		e.Event.Request = &bare
	}
	r.events = append(r.events, e)
}

// sorted returns all rows by creation.
func (m *model) sorted(order projections.Order) []*modelRow {
	var out []*modelRow
	for _, r := range m.rows {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *modelRow) int {
		c := cmp.Or(cmp.Compare(a.row.CreatedAt, b.row.CreatedAt), cmp.Compare(a.row.Key(), b.row.Key()))
		if order == projections.NewestFirst {
			return -c
		}
		return c
	})
	return out
}

func (m *model) get(org string, id operation.ID) *modelRow {
	var latest *modelRow
	for _, r := range m.rows {
		if r.row.Org == org && r.row.ID == id && (latest == nil || cmp.Or(cmp.Compare(r.row.CreatedAt, latest.row.CreatedAt), cmp.Compare(r.row.Key(), latest.row.Key())) > 0) {
			latest = r
		}
	}
	return latest
}

func (m *model) list(f projections.Filter, order projections.Order) []projections.Row {
	var out []projections.Row
	for _, r := range m.sorted(order) {
		s := &r.row
		correlation := ""
		if s.Request.Context != nil {
			correlation = s.Request.Context.CorrelationID
		}
		if (f.Organization == "" || s.Org == f.Organization) &&
			(len(f.Statuses) == 0 || slices.Contains(f.Statuses, s.Status)) &&
			(len(f.Waits) == 0 || slices.Contains(f.Waits, s.Wait())) &&
			(len(f.Types) == 0 || slices.Contains(f.Types, s.Request.Type)) &&
			(f.DependencyToken == "" || s.Request.DependencyToken == f.DependencyToken) &&
			(f.CorrelationID == "" || correlation == f.CorrelationID) &&
			within(s.CreatedAt, f.CreatedFrom, f.CreatedTo) && within(s.ModifiedAt, f.ModifiedFrom, f.ModifiedTo) {
			out = append(out, *s)
		}
	}
	return out
}

func within(t, from, to operation.Time) bool { return (from == 0 || t >= from) && (to == 0 || t < to) }

// counts counts by hand; perOrg tells whether for each organization or in all.
func (m *model) counts(org string, perOrg bool) map[projections.Count]int64 {
	out := map[projections.Count]int64{}
	for _, r := range m.rows {
		if org != "" && r.row.Org != org {
			continue
		}
		c := projections.Count{Type: r.row.Request.Type, Status: r.row.Status, Wait: r.row.Wait()}
		if org != "" || perOrg {
			c.Organization = r.row.Org
		}
		out[c]++
	}
	return out
}
