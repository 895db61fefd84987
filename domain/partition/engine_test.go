package partition_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/domain/retry"
)

func submit(id string, offset int64) *operation.Command {
	q := request("contoso", id, "mail", "", operation.UpstreamRelease, 4, 0)
	return &operation.Command{
		Kind: operation.Submit, Org: "contoso", ID: q.ID, Request: q, Cause: operation.Cause{Topic: partition.Requests, Offset: offset},
	}
}

// TestReadAgain gives the two answers of the border twice.
func TestReadAgain(t *testing.T) {
	e := partition.New(testConfig())
	c := submit("a", 3)
	for range 2 {
		e.Refuse(c, "invalid_request", "for a reason", t0)
		e.Forward(7, []byte("body"), operation.Cause{Topic: partition.Requests, Offset: 4}, t0)
	}
	events := e.Take()
	if len(events) != 2 || events[0].Kind != operation.Rejected || events[1].Kind != operation.Forwarded {
		t.Fatalf("expected one rejected and one forwarded, but got %d events", len(events))
	}
	if p := e.Positions(); p.Requests != 5 {
		t.Errorf("expected to read on at 5, but got %+v", p)
	}
}

// TestOddConfig gives what a careless configuration and a foreign journal may hold.
func TestOddConfig(t *testing.T) {
	cfg := testConfig()
	cfg.Weight = func(string) int { return -1 }
	cfg.Policy = func(string) *retry.Policy { return nil }
	e := partition.New(cfg)
	for i, priority := range []int8{-128, -1, 9, 10, 127} {
		c := submit(string(rune('a'+i)), int64(i))
		c.Request.Priority = priority
		e.Do(c, t0)
	}
	e.Hear(&partition.Heartbeat{Session: "w", Types: []string{"mail"}, Room: 10, Lease: 0}, t0)
	e.HeardThrough(t0)
	e.Settle(operation.Cause{Topic: "clock"}, t0)
	dispatched := 0
	for _, ev := range e.Take() {
		if ev.Kind == operation.Dispatched {
			dispatched++
		}
	}
	if dispatched == 0 {
		t.Error("expected some to be dispatched, but none was: a lease of nothing must not end the session")
	}
	e.Do(&operation.Command{
		Kind: operation.Fail, Org: "contoso", ID: "e", Attempt: 1, Session: "w", Failure: &operation.Failure{Class: retry.Again},
		Cause: operation.Cause{Topic: partition.Reports},
	}, t0)
	if s := e.State("contoso", "e"); s == nil || s.Status != operation.StatusWaiting {
		t.Errorf("expected e to wait for its next attempt, but it is %+v", s)
	}
	if err := e.Check(); err != nil {
		t.Error(err)
	}
}

// TestRetriedUnknown replays a retry by a writer that remembered more failed operations than this engine.
func TestRetriedUnknown(t *testing.T) {
	e := partition.New(testConfig())
	q := request("contoso", "a", "mail", "k", operation.UpstreamRelease, 4, 0)
	e.Replay(&operation.Event{Kind: operation.Retried, Org: "contoso", ID: "a", At: t0, Request: q}, 10)
	e.Recovered()
	if s := e.State("contoso", "a"); s == nil || s.Status != operation.StatusReady || s.ID != "a" || s.RequestedPlace != 10 {
		t.Errorf("expected a to be ready, but it is %+v", s)
	}
	e.Settle(operation.Cause{Topic: "clock"}, t0)
	if err := e.Check(); err != nil {
		t.Error(err)
	}
}

// A journal that no engine has written may dispatch what is dispatched.
func TestAnAttemptThatIsDispatchedAgainLeavesItsSession(t *testing.T) {
	e := partition.New(testConfig())
	events := []operation.Event{
		{Kind: operation.Requested, Request: request("contoso", "a", "mail", "", operation.UpstreamRelease, 4, 0)},
		{Kind: operation.Dispatched, Attempt: 1, Session: "v"},
		{Kind: operation.Dispatched, Attempt: 2, Session: "w"},
		{Kind: operation.Succeeded, Attempt: 2, Session: "w"},
	}
	for i := range events {
		ev := &events[i]
		ev.Org, ev.ID, ev.At = "contoso", "a", t0
		e.Replay(ev, operation.Place(i))
	}
	e.Recovered()
	e.Grace(t0)
	e.HeardThrough(t0.Add(time.Hour))
	e.Settle(operation.Cause{Topic: "clock"}, t0.Add(time.Hour))
	if events := e.Take(); len(events) != 0 || e.Live() != 0 {
		t.Errorf("expected nothing to be left to lose, but %d are live and it decided %+v", e.Live(), events)
	}
}

// TestEventsOutliveTheStep holds the events of one step against a copy after the engine has gone on, as far as they promise.
func TestEventsOutliveTheStep(t *testing.T) {
	e := partition.New(testConfig())
	e.Hear(&partition.Heartbeat{Session: "w", Types: []string{"mail"}, Room: 10, Lease: time.Hour}, t0)
	c := submit("a", 0)
	e.Do(c, t0)
	e.Settle(c.Cause, t0)
	fail := &operation.Command{
		Kind: operation.Fail, Org: "contoso", ID: "a", Attempt: 1, Session: "w", StartedAt: t0, Carry: []byte("carry"),
		Failure: &operation.Failure{Code: "boom", Class: retry.Again}, Cause: operation.Cause{Topic: partition.Reports},
	}
	e.Do(fail, t0)
	e.Settle(fail.Cause, t0)
	events := e.Take()
	var kinds []string
	for i := range events {
		kinds = append(kinds, events[i].Kind.String())
	}
	if want := "requested dispatched started attempt-failed"; len(kinds) != 4 || kinds[0]+" "+kinds[1]+" "+kinds[2]+" "+kinds[3] != want {
		t.Fatalf("expected %s, but got %v", want, kinds)
	}
	if fail.Failure.Class = retry.Fail; events[3].Failure.Class != retry.Again {
		t.Error("expected the event to have a failure of its own, but it shares the command's")
	}
}

// TestOf asks for the operations of a batch in which one ends and is asked for again.
func TestOf(t *testing.T) {
	e := partition.New(testConfig())
	e.Open("w", t0)
	e.Hear(&partition.Heartbeat{Session: "w", Types: []string{"mail"}, Room: 10, Lease: time.Hour}, t0)
	c := submit("a", 0)
	e.Do(c, t0)
	e.Settle(c.Cause, t0)
	e.Do(&operation.Command{
		Kind: operation.Succeed, Org: "contoso", ID: "a", Attempt: 1, Session: "w", StartedAt: t0, Cause: operation.Cause{Topic: partition.Reports},
	}, t0)
	again := submit("a", 1)
	e.Do(again, t0)
	e.Do(&operation.Command{Kind: operation.Pause, Org: "contoso", ID: "a", Cause: operation.Cause{Topic: partition.Requests, Offset: 2}}, t0)
	events := e.Take()
	want := []struct {
		kind operation.EventKind
		of   *operation.Request
	}{
		{operation.Opened, nil},
		{operation.Requested, c.Request},
		{operation.Dispatched, c.Request},
		{operation.Started, c.Request},
		{operation.Succeeded, c.Request},
		{operation.Unchanged, again.Request},
		{operation.Rejected, nil},
	}
	if len(events) != len(want) {
		t.Fatalf("expected %d events, but got %d", len(want), len(events))
	}
	for i, w := range want {
		if events[i].Kind != w.kind || e.Of(i) != w.of {
			t.Errorf("event %d: expected %v of %p, but got %v of %p", i, w.kind, w.of, events[i].Kind, e.Of(i))
		}
	}
}

// TestTimesNeverGoBack gives the engine a clock that is set back.
func TestTimesNeverGoBack(t *testing.T) {
	e := partition.New(testConfig())
	e.Do(submit("a", 0), t0+100)
	e.Do(submit("b", 1), t0)
	e.Open("w", t0+50)
	for _, ev := range e.Take() {
		if ev.At != t0+100 {
			t.Errorf("expected %s at 100, but got %d", describe(&ev), ev.At-t0)
		}
	}
	if e.Now() != t0+100 {
		t.Errorf("expected now to be 100, but got %d", e.Now()-t0)
	}
}

// TestAFullPartitionRefusesAndForgetsThat fills a partition: what is too much is refused with a code that says to come back,
// and is taken, under the same id, when there is room again.
func TestAFullPartitionRefusesAndForgetsThat(t *testing.T) {
	for name, cfg := range map[string]partition.Config{"by number": {LiveMax: 2}, "by size": {LiveBytes: 2}} {
		t.Run(name, func(t *testing.T) { fullPartition(t, cfg) })
	}
}

// fullPartition has room for two operations whose requests have one byte each.
func fullPartition(t *testing.T, cfg partition.Config) {
	e := partition.New(cfg)
	offset := int64(0)
	submit := func(id operation.ID) operation.Event {
		q := &operation.Request{ID: id, Organization: "o", Type: "t", Raw: []byte(id)}
		offset++
		e.Do(&operation.Command{Kind: operation.Submit, Org: "o", ID: id, Request: q, Cause: operation.Cause{Topic: partition.Requests, Offset: offset}}, 1)
		events := e.Take()
		if len(events) != 1 {
			t.Fatalf("expected one answer to %s, but got %v", id, events)
		}
		return events[0]
	}
	submit("a")
	submit("b")
	if ev := submit("c"); ev.Kind != operation.Rejected || ev.Code != operation.Overloaded {
		t.Errorf("expected the third to be refused as overloaded, but got %s %s", ev.Kind, ev.Code)
	}
	if ev := submit("a"); ev.Kind != operation.Unchanged {
		t.Errorf("expected a copy of the first to be answered by it, but got %s", ev.Kind)
	}
	offset++
	e.Do(&operation.Command{Kind: operation.Cancel, Org: "o", ID: "a", CommandID: "x", Cause: operation.Cause{Topic: partition.Requests, Offset: offset}}, 1)
	e.Take()
	if ev := submit("c"); ev.Kind != operation.Requested {
		t.Errorf("expected the third to be taken when there is room, but got %s", ev.Kind)
	}
}

// TestSubmitsAreRememberedByTheirOperationsAlone: a sender that gives each of its events an id of its own must not have half as
// many operations remembered for it.
func TestSubmitsAreRememberedByTheirOperationsAlone(t *testing.T) {
	e := partition.New(partition.Config{KnownMax: 3})
	offset := int64(0)
	give := func(kind operation.CommandKind, id operation.ID) []operation.Event {
		offset++
		c := operation.Command{Kind: kind, Org: "o", ID: id, Cause: operation.Cause{Topic: partition.Requests, Offset: offset}}
		if kind == operation.Submit {
			c.CommandID = fmt.Sprint("event-", offset)
			c.Request = &operation.Request{ID: id, Organization: "o", Type: "t", Raw: []byte(id)}
		}
		e.Do(&c, 1)
		return e.Take()
	}
	for _, id := range []operation.ID{"a", "b", "c"} {
		give(operation.Submit, id)
		give(operation.Submit, id) // a copy counts no more
		give(operation.Cancel, id)
	}
	if got := give(operation.Submit, "a"); len(got) != 1 || got[0].Kind != operation.Unchanged {
		t.Errorf("expected the first of three operations to be known, but a copy of its request leads to %s", describe(&got[0]))
	}
}

// failing has room for what a test gives it, and fails every attempt with so many bytes of checkpoint and message.
type failing struct {
	t      *testing.T
	e      *partition.Engine
	offset int64
}

func (f *failing) give(c *operation.Command) operation.Event {
	f.t.Helper()
	topic := partition.Requests
	if c.Kind.Report() {
		topic = partition.Reports
	}
	f.offset++
	c.Org, c.Cause = "o", operation.Cause{Topic: topic, Offset: f.offset}
	if c.Kind == operation.Submit {
		c.Request = &operation.Request{ID: c.ID, Organization: "o", Type: "t", Raw: []byte(c.ID)}
	}
	f.e.Do(c, t0)
	f.e.Settle(c.Cause, t0)
	if err := f.e.Check(); err != nil {
		f.t.Error(err)
	}
	return f.e.Take()[0]
}

func (f *failing) run(id operation.ID, bytes int, class retry.Class) {
	f.give(&operation.Command{Kind: operation.Submit, ID: id})
	f.give(&operation.Command{Kind: operation.Progress, ID: id, Attempt: 1, Session: "w", Carry: make([]byte, bytes)})
	f.give(&operation.Command{Kind: operation.Fail, ID: id, Attempt: 1, Session: "w", Failure: &operation.Failure{Message: strings.Repeat("m", bytes), Class: class}})
}

func newFailing(t *testing.T, cfg partition.Config) *failing {
	e := partition.New(cfg)
	e.Hear(&partition.Heartbeat{Session: "w", Types: []string{"t"}, Room: 100, Lease: time.Hour}, t0)
	return &failing{t: t, e: e}
}

// TestFailedOperationsAreBoundedInBytes: what can be retried by hand keeps its checkpoint, and handlers decide how large that is.
func TestFailedOperationsAreBoundedInBytes(t *testing.T) {
	f := newFailing(t, partition.Config{FailedBytes: 40})
	for _, id := range []operation.ID{"a", "b", "c"} {
		f.run(id, 10, retry.Fail)
	}
	if ev := f.give(&operation.Command{Kind: operation.Retry, ID: "a"}); ev.Code != operation.Forgotten {
		t.Errorf("expected the oldest of three to be forgotten where there is room for two, but got %s", describe(&ev))
	}
	if _, wants := f.e.Do(&operation.Command{Kind: operation.Retry, Org: "o", ID: "b"}, t0); !wants {
		t.Error("expected the second to be known")
	}
	f.run("large", 100, retry.Fail)
	if _, wants := f.e.Do(&operation.Command{Kind: operation.Retry, Org: "o", ID: "large"}, t0); !wants {
		t.Error("expected the last one to be known however large it is")
	}
}

// TestFailuresCountAsBytesOfLiveOperations: an operation that waits for its next attempt keeps what the last one said.
func TestFailuresCountAsBytesOfLiveOperations(t *testing.T) {
	f := newFailing(t, partition.Config{LiveBytes: 30})
	f.run("a", 10, retry.Again)
	if ev := f.give(&operation.Command{Kind: operation.Submit, ID: "0123456789"}); ev.Code != operation.Overloaded {
		t.Errorf("expected no room for ten bytes beside an operation of 21 where there are 30, but got %s", describe(&ev))
	}
}

// TestManyAreDueAtOnce: they come up in bounded steps, in the order of their times.
func TestManyAreDueAtOnce(t *testing.T) {
	e := partition.New(partition.Config{})
	const n, most = 10_000, 4096
	for i := range n {
		q := request("o", fmt.Sprint(i), "t", "", operation.UpstreamRelease, 4, t0+1+operation.Time(n-i))
		e.Do(&operation.Command{Kind: operation.Submit, Org: "o", ID: q.ID, Request: q, Cause: operation.Cause{Topic: partition.Requests, Offset: int64(i)}}, t0)
	}
	e.Take()
	now := t0 + 1 + n
	came := 0
	for steps := 0; e.NextDue() != 0 && e.NextDue() <= now && steps < n; steps++ {
		e.Settle(operation.Cause{Topic: "clock"}, now)
		events := e.Take()
		if len(events) > most {
			t.Fatalf("expected %d events of one step at most, but got %d", most, len(events))
		}
		for i := range events {
			if came++; string(events[i].ID) != fmt.Sprint(n-came) || events[i].Kind != operation.BecameDue {
				t.Fatalf("expected %d to be due next, but got %s", n-came, describe(&events[i]))
			}
		}
	}
	if came != n {
		t.Errorf("expected %d to become due, but %d did", n, came)
	}
}
