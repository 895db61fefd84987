package projectiontest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
	"github.com/opstream/opstream/projections"
)

// Journal is a journal in memory.
type Journal struct {
	Entries [][]projections.Entry // by partition; places may have gaps, where void records are
	ends    []int64
}

var _ projections.Source = (*Journal)(nil)

// NewJournal makes an empty one.
func NewJournal(partitions int) *Journal {
	return &Journal{Entries: make([][]projections.Entry, partitions), ends: make([]int64, partitions)}
}

// Append puts an event at the end of a partition.
func (j *Journal) Append(partition int32, e operation.Event) operation.Place {
	place := operation.Place(j.ends[partition])
	j.Entries[partition] = append(j.Entries[partition], projections.Entry{Partition: partition, Place: place, Event: e})
	j.ends[partition]++
	return place
}

// Skip leaves offsets out.
func (j *Journal) Skip(partition int32, n int64) { j.ends[partition] += n }

// Position is where a reader stands that has read everything before this offset.
func (j *Journal) Position(partition int32, next int64) projections.Position {
	p := projections.Position{Partition: partition, Next: next, Chain: fmt.Appendf(nil, "chain of %d to %d", partition, next)}
	for _, e := range j.Entries[partition] {
		if int64(e.Place) < next {
			p.At = e.Event.At
		}
	}
	return p
}

// Ends returns the end of every partition.
func (j *Journal) Ends(context.Context) (map[int32]int64, error) {
	ends := map[int32]int64{}
	for n, end := range j.ends {
		ends[int32(n)] = end
	}
	return ends, nil
}

// Read shows the events before an offset.
func (j *Journal) Read(_ context.Context, partition int32, to int64, show func(projections.Entry) error) (projections.Position, error) {
	for _, e := range j.Entries[partition] {
		if int64(e.Place) >= to {
			break
		}
		if err := show(e); err != nil {
			return projections.Position{}, err
		}
	}
	return j.Position(partition, min(to, j.ends[partition])), nil
}

// Batches cuts the journal into batches at random, each with events of several partitions, and calls do with each.
func (j *Journal) Batches(r *rand.Rand, largest int, do func([]projections.Entry, []projections.Position) error) error {
	at := make([]int, len(j.Entries))
	for {
		var entries []projections.Entry
		var positions []projections.Position
		left := false
		for n, all := range j.Entries {
			take := min(r.IntN(largest+1), len(all)-at[n])
			if take == 0 && at[n] < len(all) {
				left = true
				continue
			}
			entries = append(entries, all[at[n]:at[n]+take]...)
			at[n] += take
			next := j.ends[n]
			if at[n] < len(all) {
				next, left = int64(all[at[n]].Place), true
			}
			positions = append(positions, j.Position(int32(n), next))
		}
		if err := do(entries, positions); err != nil {
			return err
		}
		if !left {
			return nil
		}
	}
}

// Hostile are texts that break what is put together carelessly.
var Hostile = []string{
	"'; DROP TABLE operations; --", "nul\x00in the middle", "\xff\xfe not UTF-8", "\u202eright to left", "%_*?[a-z]", "🙃", "a\nb\tc\\\"", "/", "é", "e\u0301",
}

// Random makes the journal of legal histories: every event comes from operation.Decide. The same seed makes the same
// journal.
func Random(seed uint64, partitions, steps int) *Journal {
	g := &generator{
		r: rand.New(rand.NewPCG(seed, 7)), journal: NewJournal(partitions), now: 1_800_000_000_000_000,
		states: map[projections.Ref]*operation.State{},
	}
	for n := range partitions {
		g.journal.Append(int32(n), operation.Event{Kind: operation.Opened, At: g.now, Owner: "a scheduler"})
	}
	for range steps {
		g.step()
	}
	return g.journal
}

type generator struct {
	r       *rand.Rand
	journal *Journal
	now     operation.Time
	states  map[projections.Ref]*operation.State
}

func (g *generator) one(of ...string) string { return of[g.r.IntN(len(of))] }

func (g *generator) text() string { return g.one("", "some text", g.one(Hostile...)) }

func (g *generator) json() []byte {
	switch g.r.IntN(3) {
	case 0:
		return nil
	case 1:
		return []byte(`{}`)
	default:
		return fmt.Appendf(nil, `{"n":%d}`, g.r.IntN(100))
	}
}

func (g *generator) step() {
	g.now += operation.Time(g.r.IntN(3)) // often the same instant
	org := g.one("contoso", "fabrikam", Hostile[0])
	id := operation.ID(fmt.Sprintf("%s-%d", g.one("op", Hostile[g.r.IntN(len(Hostile))]), g.r.IntN(20)))
	n := int32((len(org) + len(id)) % len(g.journal.Entries))
	if g.r.IntN(20) == 0 {
		n = int32(g.r.IntN(len(g.journal.Entries))) // a caller changed the dependency token
	}
	ref := projections.Ref{Partition: n, Org: org, ID: id}
	s := g.states[ref]
	if s == nil {
		s = &operation.State{}
		g.states[ref] = s
	}
	if g.r.IntN(50) == 0 {
		g.journal.Skip(n, int64(g.r.IntN(3)))
	}
	if s.Status.Terminal() && g.r.IntN(10) == 0 {
		*s = operation.State{} // the scheduler has forgotten it
	}
	c := g.command(s, org, id)
	events, no := operation.Decide(nil, s, &c, g.now)
	switch {
	case no != nil:
		g.journal.Append(n, operation.Event{
			Kind: operation.Rejected, Org: org, ID: id, At: g.now, Cause: c.Cause, CommandID: c.CommandID, By: c.By,
			Command: c.Kind, Code: no.Code, Reason: no.Reason,
		})
	case len(events) == 0:
		g.journal.Append(n, operation.Event{
			Kind: operation.Unchanged, Org: org, ID: id, At: g.now, Cause: c.Cause, CommandID: c.CommandID, Command: c.Kind, Status: s.Status,
		})
	}
	for i := range events {
		place := g.journal.Append(n, events[i])
		s.Apply(&events[i], place)
	}
}

func (g *generator) command(s *operation.State, org string, id operation.ID) operation.Command {
	kinds := []operation.CommandKind{
		operation.Submit, operation.Cancel, operation.Pause, operation.Resume, operation.Postpone, operation.Retry, operation.Delete, operation.Start,
		operation.Progress, operation.Succeed, operation.Fail, operation.Yield, operation.Stop, operation.Return, operation.Dispatch, operation.Dispatch,
		operation.Dispatch, operation.Release, operation.Block, operation.Due, operation.LoseLease,
	}
	c := operation.Command{
		Kind: kinds[g.r.IntN(len(kinds))], Org: org, ID: id, Cause: operation.Cause{Topic: g.one("", "requests", "clock"), Offset: g.r.Int64()},
		Attempt: s.Attempt, Session: s.Session, Policy: &retry.Default,
	}
	if s.Status == operation.StatusAbsent && g.r.IntN(4) != 0 {
		c.Kind = operation.Submit
	}
	if g.r.IntN(10) == 0 {
		c.Attempt++ // a report that is stale
	}
	if c.Kind == operation.Dispatch {
		c.Session = operation.SessionID(g.one("session-1", "session-2"))
	}
	if c.Kind.Request() {
		c.CommandID = g.text()
		if c.Kind != operation.Submit {
			c.By = operation.By{Who: g.text(), Reason: g.text()}
		}
	}
	if c.Kind.Report() && g.r.IntN(2) == 0 {
		c.StartedAt = g.now - 5
	}
	switch c.Kind {
	case operation.Submit:
		c.Request = g.request(org, id)
		if c.Request.DependencyToken != "" && g.r.IntN(2) == 0 {
			c.Upstream = "the one before"
		}
	case operation.Retry:
		if s.Request != nil {
			again := *s.Request
			if g.r.IntN(2) == 0 {
				again.Data, again.Raw = []byte(`{"corrected":true}`), fmt.Appendf(nil, `{"corrected":%d}`, g.r.IntN(100))
			}
			c.Request = &again
		}
	case operation.Postpone, operation.Yield:
		c.Until = g.now + operation.Time(g.r.IntN(100)-10)
		if c.Kind == operation.Yield && g.r.IntN(2) == 0 {
			c.Event, c.Until = "approved", 0
		}
		c.Carry = g.json()
	case operation.Progress:
		c.Progress, c.Carry = g.json(), g.json()
	case operation.Succeed:
		c.Result = g.json()
	case operation.Fail, operation.Stop:
		c.Failure = &operation.Failure{Code: "broken", ErrorCode: int32(g.r.Uint32()), Message: g.text(), FriendlyMessage: g.text(), Class: retry.Class(g.r.IntN(4))}
	case operation.Release, operation.Block:
		c.Upstream = operation.ID(g.one("the one before", "another one"))
		if c.Kind == operation.Block && g.r.IntN(2) == 0 {
			c.Failure = &operation.Failure{Code: "broken"}
		}
	}
	return c
}

func (g *generator) request(org string, id operation.ID) *operation.Request {
	q := &operation.Request{
		ID: id, Organization: org, Type: g.one("workflow", "bulk-delete", "helpdesk.close-ticket"), Name: g.text(),
		DependencyToken: g.one("", "", "token", Hostile[1]), Priority: int8(g.r.IntN(10)), Data: []byte(`{}`),
		Raw: fmt.Appendf(nil, `{"id":%q,"n":%d}`, id, g.r.IntN(3)),
	}
	if g.r.IntN(3) == 0 {
		q.PostponeUntil, q.TimeLimit, q.OnUpstreamFailure, q.ExplicitKey = g.now+50, time.Minute, operation.UpstreamBlock, "key"
	}
	if g.r.IntN(3) == 0 {
		q.Retry = &retry.Policy{MaxAttempts: 1 + g.r.IntN(3), Initial: time.Microsecond, Multiplier: 1.5, Jitter: 0.1}
	}
	if g.r.IntN(3) == 0 {
		q.Context = &operation.Context{CorrelationID: g.one("", "correlation", Hostile[2]), Depth: int32(g.r.IntN(8)), OwnerID: g.text(), RegardingType: "account", RegardingID: g.text()}
	}
	return q
}

// All is everything in one batch.
func (j *Journal) All() ([]projections.Entry, []projections.Position) {
	var positions []projections.Position
	for n, end := range j.ends {
		positions = append(positions, j.Position(int32(n), end))
	}
	return slices.Concat(j.Entries...), positions
}
