package query

import (
	"cmp"
	"encoding/json"
	"slices"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/projections"
)

// show makes the answer of a row. In full it has the request, the progress and the result, which may be large.
func show(row *projections.Row, full bool) api.Operation {
	request := row.Request
	o := api.Operation{
		Organization: row.Org, ID: string(row.ID), Type: request.Type, TypeCode: row.TypeCode(), Name: request.Name,
		Standing: api.StandingOf(row.Status), Wait: row.Wait().String(), Why: Why(&row.State),
		Until: instant(row.Until), BlockedBy: string(row.BlockedBy),
		DependencyToken: request.DependencyToken, PartitionKey: request.Key(), Priority: int(request.Priority),
		Attempt: uint32(row.Attempt), Failures: row.Failures, Session: string(row.Session),
		CreatedAt: row.CreatedAt.Go(), ModifiedAt: row.ModifiedAt.Go(), StartedAt: instant(row.StartedAt), CompletedAt: instant(row.CompletedAt),
		By: showBy(row.By), Failure: api.FailureOf(row.Failure),
		Position: positionOf(row.Partition, row.LastPlace).String(), Sequence: row.Sequence(),
	}
	if request.Context != nil {
		o.CorrelationID = request.Context.CorrelationID
	}
	if full {
		o.Request, o.Progress, o.Result = raw(request.Raw), raw(row.Progress), raw(row.Result)
	}
	return o
}

func instant(t operation.Time) *time.Time {
	if t == 0 {
		return nil
	}
	at := t.Go()
	return &at
}

func showBy(b operation.By) *api.By {
	if b == (operation.By{}) {
		return nil
	}
	return &api.By{Who: b.Who, Reason: b.Reason}
}

func raw(data []byte) json.RawMessage {
	if len(data) == 0 {
		return nil
	}
	return data
}

func showEvent(entry *projections.Entry) api.HistoryEvent {
	e := &entry.Event
	h := api.HistoryEvent{
		Position: positionOf(entry.Partition, entry.Place).String(), At: e.At.Go(), Event: e.Kind.String(),
		Attempt: uint32(e.Attempt), Session: string(e.Session), StartedAt: instant(e.StartedAt),
		Waits: waits(e.Holds), Until: instant(e.Until), Upstream: string(e.Upstream),
		By: showBy(e.By), Failure: api.FailureOf(e.Failure), WaitsFor: e.Event,
		Code: string(e.Code), Reason: e.Reason, CommandID: e.CommandID,
		Progress: raw(e.Progress), Result: raw(e.Result),
	}
	if !e.Kind.Changes() {
		h.Command = e.Command.String()
	}
	if e.Cause.Topic != "" {
		h.Cause = &api.Cause{Topic: e.Cause.Topic, Offset: e.Cause.Offset}
	}
	return h
}

// waits names the holds, in the order of their strength.
func waits(h operation.Holds) []string {
	var list []string
	for _, hold := range [...]struct {
		bit  operation.Holds
		wait operation.Wait
	}{
		{operation.HoldPaused, operation.WaitPaused},
		{operation.HoldDependency, operation.WaitDependency},
		{operation.HoldEvent, operation.WaitEvent},
		{operation.HoldPostponed, operation.WaitPostponed},
		{operation.HoldRetry, operation.WaitRetry},
	} {
		if h&hold.bit != 0 {
			list = append(list, hold.wait.String())
		}
	}
	return list
}

// showCounts sums counts up by status, wait reason and type. All statuses are there, those with no operation too, so that
// who shows them need not know them.
func showCounts(org string, counts []projections.Count) api.Counts {
	out := api.Counts{Organization: org, ByStatus: []api.StatusCount{}, ByWait: []api.WaitCount{}, ByType: []api.TypeCount{}}
	statuses := map[operation.Status]int64{}
	reasons := map[operation.Wait]int64{}
	types := map[string]*api.TypeCount{}
	for _, c := range counts {
		out.Total += c.N
		statuses[c.Status] += c.N
		if c.Wait != operation.WaitNone {
			reasons[c.Wait] += c.N
		}
		t := types[c.Type]
		if t == nil {
			t = &api.TypeCount{Type: c.Type, TypeCode: api.TypeCode(c.Type), ByStatus: map[string]int64{}}
			types[c.Type] = t
		}
		t.Count += c.N
		t.ByStatus[c.Status.String()] += c.N
	}
	for s := operation.StatusReady; s < operation.StatusDeleted; s++ {
		out.ByStatus = append(out.ByStatus, api.StatusCount{Standing: api.StandingOf(s), Count: statuses[s]})
	}
	for w, n := range reasons {
		out.ByWait = append(out.ByWait, api.WaitCount{Wait: w.String(), Count: n})
	}
	slices.SortFunc(out.ByWait, func(a, b api.WaitCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Wait, b.Wait))
	})
	for _, t := range types {
		out.ByType = append(out.ByType, *t)
	}
	slices.SortFunc(out.ByType, func(a, b api.TypeCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Type, b.Type))
	})
	return out
}
