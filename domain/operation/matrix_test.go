package operation_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
)

var update = flag.Bool("update", false, "write the answers that the code gives into testdata")

const (
	t0    = operation.Time(1_700_000_000_000_000)
	later = t0 + 60_000_000
)

// seen collects what the tests of this package have met, for the test of completeness, which runs last.
var seen = struct {
	kinds map[operation.EventKind]bool
	codes map[operation.RejectionCode]bool
}{map[operation.EventKind]bool{}, map[operation.RejectionCode]bool{}}

func decide(s *operation.State, c *operation.Command, now operation.Time) ([]operation.Event, *operation.Rejection) {
	events, rejection := operation.Decide(nil, s, c, now)
	for i := range events {
		seen.kinds[events[i].Kind] = true
	}
	if rejection != nil {
		seen.codes[rejection.Code] = true
	}
	return events, rejection
}

// base is an operation that may be put into any status.
func base(status operation.Status) operation.State {
	s := operation.State{
		Org: "contoso", ID: "op", Status: status, Since: t0, CreatedAt: t0, ModifiedAt: t0,
		Request: &operation.Request{ID: "op", Organization: "contoso", Type: "bulk-email", Raw: []byte(`{"id":"op"}`)},
	}
	if status.Locked() || status.Terminal() {
		s.Attempt, s.Session = 1, "w1"
	}
	if status == operation.StatusRunning {
		s.StartedAttempt = 1
	}
	return s
}

// rows are the rows of the matrix.
func rows() (names []string, states []operation.State) {
	row := func(name string, s operation.State) { names, states = append(names, name), append(states, s) }
	waiting := func(name string, holds operation.Holds, f func(*operation.State)) {
		s := base(operation.StatusWaiting)
		s.Holds = holds
		if f != nil {
			f(&s)
		}
		row(name, s)
	}
	row("absent", operation.State{})
	row("ready", base(operation.StatusReady))
	waiting("postponed", operation.HoldPostponed, func(s *operation.State) { s.Until = t0 })
	waiting("dependency", operation.HoldDependency, func(s *operation.State) { s.BlockedBy = "up" })
	waiting("dependency-blocked", operation.HoldDependency, func(s *operation.State) { s.BlockedBy, s.Blocked = "up", true })
	waiting("retry", operation.HoldRetry, func(s *operation.State) {
		s.Until, s.Attempt, s.Session, s.Failures = t0, 1, "w1", 1
		s.Failure = &operation.Failure{Code: "boom", Class: retry.Again}
	})
	waiting("event", operation.HoldEvent, func(s *operation.State) { s.WaitsFor, s.Attempt, s.Session = "mail", 1, "w1" })
	waiting("paused", operation.HoldPaused, nil)
	for status := operation.StatusDispatched; status <= operation.StatusDeleted; status++ {
		row(status.String(), base(status))
	}
	return names, states
}

// column is the command of a column: a report of the open attempt, a failure that may be tried again.
func column(kind operation.CommandKind) operation.Command {
	c := operation.Command{Kind: kind, Org: "contoso", ID: "op", Cause: operation.Cause{Topic: "requests", Offset: 7}, CommandID: "c"}
	req := base(operation.StatusReady).Request
	switch {
	case kind == operation.Submit || kind == operation.Retry:
		c.Request = req
	case kind == operation.Postpone:
		c.Until = later
	case kind == operation.Release:
		c.Upstream = "up"
	case kind == operation.Block:
		c.Upstream, c.Failure = "up", &operation.Failure{}
	case kind.Report() || kind == operation.LoseLease:
		c.Attempt, c.Session = 1, "w1"
		c.CommandID, c.Cause.Topic = "", "reports"
	}
	switch kind {
	case operation.Start:
		c.StartedAt = t0
	case operation.Fail:
		c.Failure = &operation.Failure{Code: "boom", Class: retry.Again}
	case operation.Dispatch:
		c.Attempt, c.Session = 2, "w2"
	}
	return c
}

// TestMatrix freezes the whole machine: what each command does in each state.
func TestMatrix(t *testing.T) {
	names, states := rows()
	table := [][]string{{""}}
	for kind := operation.CommandKind(0); kind < operation.CommandKinds; kind++ {
		table[0] = append(table[0], kind.String())
	}
	for i, name := range names {
		line := []string{name}
		for kind := operation.CommandKind(0); kind < operation.CommandKinds; kind++ {
			s, c := states[i], column(kind)
			before := fmt.Sprintf("%+v", s)
			events, rejection := decide(&s, &c, t0)
			cell := "-"
			switch {
			case rejection != nil:
				cell = string(rejection.Code)
				if len(events) > 0 {
					t.Errorf("%s, %s: a rejection came with %d events", name, kind, len(events))
				}
			case len(events) > 0:
				cell = ""
				for _, e := range events {
					cell += "+" + e.Kind.String()
				}
			}
			if after := fmt.Sprintf("%+v", s); after != before {
				t.Errorf("%s, %s: Decide changed the state:\n%s\n%s", name, kind, before, after)
			}
			line = append(line, cell)
		}
		table = append(table, line)
	}
	golden(t, "testdata/matrix.golden", align(table))
}

// align writes a table with columns as wide as they must be.
func align(table [][]string) []byte {
	width := make([]int, len(table[0]))
	for _, line := range table {
		for i, cell := range line {
			width[i] = max(width[i], len(cell))
		}
	}
	var out []byte
	for _, line := range table {
		for i, cell := range line {
			out = fmt.Appendf(out, "%-*s  ", width[i], cell)
		}
		out = append(bytes.TrimRight(out, " "), '\n')
	}
	return out
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, got) {
		t.Errorf("%s: expected\n%s\nbut got\n%s\n(go test -update writes it)", path, want, got)
	}
}

// TestCommandAgain gives every command twice in every row: the second one must find nothing to do or be refused, else an
// input that is read twice would change something. Progress is the exception that the engine's positions take care of;
// and a command that led back to a state in which it is due again: Dispatch of an attempt that went on.
func TestCommandAgain(t *testing.T) {
	names, states := rows()
	for i, name := range names {
		for kind := operation.CommandKind(0); kind < operation.CommandKinds; kind++ {
			if kind == operation.Progress {
				continue
			}
			s, c := states[i], column(kind)
			events, _ := decide(&s, &c, t0)
			for j := range events {
				s.Apply(&events[j], operation.Place(100+j))
			}
			again, _ := decide(&s, &c, t0)
			if len(again) > 0 {
				t.Errorf("%s, %s twice: expected nothing the second time, but got %v", name, kind, again[0].Kind)
			}
		}
	}
}

// TestStartedFirst cuts the two events of a report after the first: the report is given again, and the rest follows.
func TestStartedFirst(t *testing.T) {
	for kind := operation.Progress; kind <= operation.Return; kind++ {
		for status := operation.StatusDispatched; status <= operation.StatusCanceling; status++ {
			whole, cut, c := base(status), base(status), column(kind)
			whole.StartedAttempt, cut.StartedAttempt = 0, 0
			c.StartedAt = t0 + 1
			events, _ := decide(&whole, &c, t0)
			if len(events) != 2 || events[0].Kind != operation.Started {
				t.Fatalf("%s, %s: expected started and its end, but got %d events", status, kind, len(events))
			}
			for i := range events {
				whole.Apply(&events[i], operation.Place(10+i))
			}
			cut.Apply(&events[0], 10)
			rest, _ := decide(&cut, &c, t0)
			if len(rest) != 1 {
				t.Fatalf("%s, %s: expected one event after the cut, but got %d", status, kind, len(rest))
			}
			cut.Apply(&rest[0], 11)
			if a, b := fmt.Sprintf("%+v", show(whole)), fmt.Sprintf("%+v", show(cut)); a != b {
				t.Errorf("%s, %s: expected\n%s\nafter the cut, but got\n%s", status, kind, a, b)
			}
		}
	}
}

// show is the state with its failure spelled out, for comparison.
func show(s operation.State) string {
	var f operation.Failure
	if s.Failure != nil {
		f = *s.Failure
	}
	s.Failure, s.Request = nil, nil
	return fmt.Sprintf("%+v %+v", s, f)
}

// TestBadInputDoesNotPanic leaves out what a well-formed command has.
func TestBadInputDoesNotPanic(t *testing.T) {
	_, states := rows()
	for _, s := range states {
		for kind := operation.Cancel; kind < operation.CommandKinds; kind++ {
			c := column(kind)
			c.Failure, c.Policy, c.Until, c.StartedAt, c.Cause = nil, nil, 0, 0, operation.Cause{}
			_, _ = decide(&s, &c, t0)
		}
	}
}

// TestNextIsFinite keeps extreme policies from giving waits that sums overflow with.
func TestNextIsFinite(t *testing.T) {
	for _, p := range []retry.Policy{
		{MaxAttempts: 1 << 30, Multiplier: 10, Initial: time.Hour},
		{MaxAttempts: 1 << 30, Multiplier: 10},
		{MaxAttempts: 1 << 30, Multiplier: 10, Max: time.Minute, Jitter: 1},
		{MaxAttempts: 1 << 30, Initial: -time.Hour},
	} {
		for _, failures := range []int{0, 1, 2, 100, 5000, 1 << 29} {
			wait, more := p.Next(failures, 42)
			if !more || wait < 0 || wait > 101*365*24*time.Hour {
				t.Errorf("%+v after %d failures: expected a wait between 0 and a century, but got %v %v", p, failures, wait, more)
			}
		}
	}
}
