package partition_test

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/partition"
	"github.com/opstream/opstream/domain/retry"
)

// dice chooses a number below n: from a seed, or from rapid, which shrinks what it chose.
type dice func(n int) int

// histories is the number of random histories of TestLaws, and steps the length of each.
var histories = flag.Int("histories", 1000, "random histories to play, from seed 0 on")

const steps = 60

// TestLaws plays random histories and checks the laws that are written at the functions of world. A failure names its seed.
func TestLaws(t *testing.T) {
	n := *histories
	if testing.Short() {
		n /= 10
	}
	var met counts
	for seed := range uint64(n) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := newWorld(r.IntN)
		if err := w.play(steps); err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, w.log())
		}
		met.add(&w.met)
	}
	t.Logf("%d histories of %d steps: %+v", n, steps, met)
	for kind := operation.Requested; int(kind) < operation.EventKinds; kind++ {
		if met.kinds[kind] == 0 && kind != operation.Forwarded {
			t.Errorf("no history has an event %s", kind)
		}
	}
}

// TestLawsShrinking is TestLaws with rapid, which finds a short history for a failure.
func TestLawsShrinking(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "choice") })
		if err := w.play(rapid.IntRange(1, 40).Draw(t, "steps")); err != nil {
			t.Fatalf("%v\n%s", err, w.log())
		}
	})
}

type counts struct {
	kinds                                           [operation.EventKinds]int
	events, cuts, checkpoints, increments, restores int
}

func (c *counts) add(o *counts) {
	for i, n := range o.kinds {
		c.kinds[i] += n
	}
	c.events += o.events
	c.cuts += o.cuts
	c.checkpoints += o.checkpoints
	c.increments += o.increments
	c.restores += o.restores
}

// world is a partition with everything around it: the log of inputs, the journal, the sessions, and a fold of the journal
// that knows nothing of the engine's indexes.
type world struct {
	dice  dice
	cfg   partition.Config
	e     *partition.Engine
	now   operation.Time
	next  int // number of the next operation
	notes []string

	inputs  []operation.Command // in the order in which they came, of all topics
	offsets map[string]int64
	journal []operation.Event
	beats   map[operation.SessionID]partition.Heartbeat // the last of each
	saved   []partition.Checkpoint                      // a base and its increments
	step    int                                         // journal index at which the current step begins
	given   int                                         // index in inputs of the first one of the step

	fold
	met counts
}

// fold is what the journal says.
type fold struct {
	ops    map[partition.Ref]operation.State
	again  map[partition.Ref]bool // was retried by hand
	outbox *partition.Outbox
}

func newFold() fold {
	return fold{ops: map[partition.Ref]operation.State{}, again: map[partition.Ref]bool{}, outbox: partition.NewOutbox()}
}

func newWorld(d dice) *world {
	cfg := testConfig()
	cfg.KnownMax = []int{1000, 12}[d(2)]
	cfg.FailedMax = []int{100, 2}[d(2)]
	cfg.FailedBytes = []int{1 << 20, 2}[d(2)]
	cfg.Partitions = 1 + d(3)
	cfg.Policy = func(t string) *retry.Policy {
		if t == "import" {
			return &retry.Policy{MaxAttempts: 4} // without any wait
		}
		return &retry.Policy{MaxAttempts: 3, Initial: time.Second, Multiplier: 2}
	}
	w := &world{dice: d, cfg: cfg, now: t0, offsets: map[string]int64{}, beats: map[operation.SessionID]partition.Heartbeat{}, fold: newFold()}
	w.e = partition.New(cfg)
	return w
}

func (w *world) note(format string, args ...any) {
	w.notes = append(w.notes, fmt.Sprintf(format, args...))
}

// log is the history for people.
func (w *world) log() string { return strings.Join(w.notes, "\n") }

func (w *world) play(steps int) error {
	w.e.Open("writer", w.now)
	if err := w.commit(); err != nil {
		return err
	}
	for range steps {
		if err := w.one(); err != nil {
			return err
		}
	}
	return w.drain()
}

// one plays one step, and what may come between two steps.
func (w *world) one() error {
	w.step, w.given = len(w.journal), len(w.inputs)
	if w.dice(6) == 0 {
		w.now += operation.Time([]int{1, 500_000, 3_000_000, 20_000_000}[w.dice(4)])
		w.note("at %s", seconds(w.now))
	}
	for range w.dice(4) {
		w.act()
	}
	if err := w.settle(); err != nil {
		return err
	}
	switch w.dice(12) {
	case 0, 1:
		return w.cut()
	case 2:
		return w.restore()
	case 3, 4, 5:
		w.save()
	case 6:
		if w.dice(3) == 0 {
			return w.behind()
		}
	}
	return nil
}

// settle ends a step.
func (w *world) settle() error {
	w.e.HeardThrough(w.now)
	cause := operation.Cause{Topic: "clock"}
	if n := len(w.inputs); n > w.given {
		cause = w.inputs[n-1].Cause
	}
	w.e.Settle(cause, w.now)
	if at := w.e.NextWake(); at != 0 && at <= w.now {
		return fmt.Errorf("expected to wake after %s, but NextWake says %s: the actor would spin", seconds(w.now), seconds(at))
	}
	if w.e.Silent(w.now) {
		return fmt.Errorf("a session is silent at %s though all heartbeats are known", seconds(w.now))
	}
	if err := w.commit(); err != nil {
		return err
	}
	if err := w.e.Check(); err != nil {
		return err
	}
	live := 0
	for _, s := range w.ops {
		if s.Request != nil && !s.Status.Terminal() {
			live++
		}
	}
	if live != w.e.Live() {
		return fmt.Errorf("%d operations are live, but the engine holds %d", live, w.e.Live())
	}
	if w.step%4 == 0 {
		return w.replay()
	}
	return nil
}

// replay is the law that the engine is a function of the journal: applying it from nothing gives the same state.
func (w *world) replay() error {
	return same("replaying the journal", w.e, w.replayed(w.journal))
}

func (w *world) replayed(journal []operation.Event) *partition.Engine {
	e := partition.New(w.cfg)
	for i := range journal {
		e.Replay(&journal[i], operation.Place(i))
	}
	return e
}

func same(what string, want, got *partition.Engine) error {
	a, b := strings.Split(want.Dump(), "\n"), strings.Split(got.Dump(), "\n")
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || a[i] != b[i] {
			return fmt.Errorf("after %s: expected\n%s\nbut got\n%s", what, strings.Join(a[min(i, len(a)):], "\n"), strings.Join(b[min(i, len(b)):], "\n"))
		}
	}
	return nil
}

// commit takes the events of the step into the journal and checks each one.
func (w *world) commit() error {
	for _, ev := range w.e.Take() {
		place := operation.Place(len(w.journal))
		w.journal = append(w.journal, ev)
		w.note("  %4d %s %s", place, seconds(ev.At), describe(&ev))
		if err := w.check(&ev, place); err != nil {
			return fmt.Errorf("event %d, %s: %w", place, describe(&ev), err)
		}
	}
	if w.e.End() != operation.Place(len(w.journal)) {
		return fmt.Errorf("the journal has %d events, but the engine's end is %d", len(w.journal), w.e.End())
	}
	return nil
}

// check is the laws of single events.
func (w *world) check(ev *operation.Event, place operation.Place) error {
	w.met.events++
	w.met.kinds[ev.Kind]++
	if n := len(w.journal); n > 1 && w.journal[n-2].At > ev.At {
		return fmt.Errorf("time goes back from %s to %s", seconds(w.journal[n-2].At), seconds(ev.At))
	}
	ref := partition.Ref{Org: ev.Org, ID: ev.ID}
	before := w.ops[ref]
	w.apply(ev, place)
	after := w.ops[ref]

	// A terminal status is left only by a retry by hand and by deletion; by a new request only when the id was forgotten.
	if before.Status.Terminal() && after.Status != before.Status {
		forgotten := ev.Kind == operation.Requested && w.cfg.KnownMax < 100
		if ev.Kind != operation.Retried && ev.Kind != operation.Deleted && !forgotten {
			return fmt.Errorf("%v was %s and is %s", ref, before.Status, after.Status)
		}
	}
	if ev.Kind == operation.Dispatched {
		// One at a time per token, in the order of the requests, but for those that were retried by hand.
		for other, s := range w.ops {
			if other == ref || other.Org != ref.Org || s.Status.Terminal() || s.Request == nil ||
				s.Request.DependencyToken == "" || s.Request.DependencyToken != after.Request.DependencyToken {
				continue
			}
			if s.Status.Locked() {
				return fmt.Errorf("%v is %s already", other, s.Status)
			}
			if s.RequestedPlace < after.RequestedPlace && !w.again[other] {
				return fmt.Errorf("%v comes before it, but is %s %s", other, s.Status, s.Wait())
			}
		}
		// Never more than the session has room for, only what it serves, and only while it takes something.
		open := 0
		for _, s := range w.ops {
			if s.Status.Locked() && s.Session == ev.Session {
				open++
			}
		}
		hb, known := w.beats[ev.Session]
		if !known || hb.Draining || hb.Ended || !slices.Contains(hb.Types, after.Request.Type) || open > hb.Room {
			return fmt.Errorf("the session says %+v, but has %d attempts", hb, open)
		}
	}
	return w.marks(w.outbox)
}

// apply folds an event.
func (f *fold) apply(ev *operation.Event, place operation.Place) {
	if ev.Kind.Changes() {
		ref := partition.Ref{Org: ev.Org, ID: ev.ID}
		s := f.ops[ref]
		s.Apply(ev, place)
		f.ops[ref] = s
		switch ev.Kind {
		case operation.Retried:
			f.again[ref] = true
		case operation.Requested:
			delete(f.again, ref)
		}
	}
	f.outbox.Commit(ev, place)
}

// marks is the law that an outbox's low mark is the oldest place that is open with a session.
func (f *fold) marks(b *partition.Outbox) error {
	low, open := map[operation.SessionID]operation.Place{}, 0
	for ref, s := range f.ops {
		if !s.Status.Locked() {
			continue
		}
		open++
		if at, ok := b.Open(ref); !ok || at != s.DispatchedPlace {
			return fmt.Errorf("the attempt of %v is open since %d, but the outbox says %d %v", ref, s.DispatchedPlace, at, ok)
		}
		if at, ok := low[s.Session]; !ok || s.DispatchedPlace < at {
			low[s.Session] = s.DispatchedPlace
		}
	}
	for _, session := range sessionIDs {
		want, ok := low[session]
		if !ok {
			want = -7
		}
		if got := b.Low(session, -7); got != want {
			return fmt.Errorf("the oldest place that is open with %s is %d, but the outbox says %d", session, want, got)
		}
	}
	if b.Len() != open {
		return fmt.Errorf("%d attempts are open, but the outbox says %d", open, b.Len())
	}
	return nil
}

var sessionIDs = []operation.SessionID{"s0", "s1", "s2"}

// give puts a command on its topic and does it.
func (w *world) give(c operation.Command) {
	c.Cause = operation.Cause{Topic: partition.Requests}
	if c.Kind.Report() {
		c.Cause.Topic = partition.Reports
	}
	c.Cause.Offset = w.offsets[c.Cause.Topic]
	w.offsets[c.Cause.Topic]++
	w.inputs = append(w.inputs, c)
	w.note("%s/%d %s %s/%s attempt=%d session=%s", c.Cause.Topic, c.Cause.Offset, c.Kind, c.Org, c.ID, c.Attempt, c.Session)
	w.do(w.e, c)
}

func (w *world) do(e *partition.Engine, c operation.Command) {
	if place, wants := e.Do(&c, w.now); wants {
		old := *w.journal[place].Request
		if c.Data != nil {
			old.Data, old.Raw = c.Data, append(slices.Clip(old.Raw), c.Data...)
		}
		c.Request = &old
		e.Do(&c, w.now)
	}
}

func (w *world) hear(hb partition.Heartbeat) {
	w.beats[hb.Session] = hb
	w.note("heartbeat %+v", hb)
	w.e.Hear(&hb, w.now)
}

// some returns a random operation that the fold knows and that is as asked.
func (w *world) some(is func(*operation.State) bool) (operation.State, bool) {
	var refs []partition.Ref
	for ref, s := range w.ops {
		if s.Request != nil && is(&s) {
			refs = append(refs, ref)
		}
	}
	if len(refs) == 0 {
		return operation.State{}, false
	}
	slices.SortFunc(refs, func(a, b partition.Ref) int { return strings.Compare(a.Org+"/"+string(a.ID), b.Org+"/"+string(b.ID)) })
	return w.ops[refs[w.dice(len(refs))]], true
}

// act plays one random thing.
func (w *world) act() {
	every := func(*operation.State) bool { return true }
	live := func(s *operation.State) bool { return !s.Status.Terminal() }
	switch k := w.dice(95); {
	case k < 28: // a new operation
		id := fmt.Sprintf("op%03d", w.next)
		w.next++
		w.give(w.submit(id))
	case k < 31: // a copy of an earlier request, or another one under its id
		if s, ok := w.some(every); ok {
			q := *s.Request
			if w.dice(3) == 0 {
				q.Raw = append(slices.Clip(q.Raw), ' ')
			}
			w.give(operation.Command{Kind: operation.Submit, Org: s.Org, ID: s.ID, Request: &q})
		}
	case k < 40:
		hb := partition.Heartbeat{
			Session: sessionIDs[w.dice(len(sessionIDs))], Room: 1 + w.dice(6), Inbox: 0, Lease: time.Duration(1+w.dice(20)) * time.Second,
			Types: [][]string{{"import", "mail"}, {"mail"}, {"import"}}[w.dice(3)], Draining: w.dice(8) == 0, Ended: w.dice(12) == 0,
		}
		w.hear(hb)
	case k < 68: // a report of an open attempt
		if s, ok := w.some(func(s *operation.State) bool { return s.Status.Locked() }); ok {
			w.give(w.report(&s))
		}
	case k < 73: // a stale report, or an echo
		if s, ok := w.some(func(s *operation.State) bool { return s.Attempt > 0 }); ok {
			c := w.report(&s)
			switch w.dice(3) {
			case 0:
				c.Attempt--
			case 1:
				c.Session = "s9"
			}
			w.give(c)
		}
	case k < 90:
		kind := []operation.CommandKind{
			operation.Cancel, operation.Pause, operation.Resume, operation.Resume, operation.Postpone, operation.Delete,
		}[w.dice(6)]
		choice := live
		if kind == operation.Delete || w.dice(6) == 0 {
			choice = every
		}
		if s, ok := w.some(choice); ok {
			c := operation.Command{Kind: kind, Org: s.Org, ID: s.ID, CommandID: fmt.Sprint("c", w.dice(40)), Until: w.now + operation.Time(w.dice(20)-2)*1e6}
			w.give(c)
		}
	case k < 95:
		if s, ok := w.some(func(s *operation.State) bool { return s.Status == operation.StatusFailed }); ok {
			c := operation.Command{Kind: operation.Retry, Org: s.Org, ID: s.ID}
			if w.dice(3) == 0 {
				c.Data = []byte("+")
			}
			w.give(c)
		}
	}
}

func (w *world) submit(id string) operation.Command {
	org := []string{"contoso", "heavy"}[w.dice(2)]
	postpone := operation.Time(0)
	if w.dice(5) == 0 {
		postpone = w.now + operation.Time(w.dice(10))*1e6
	}
	q := request(org, id, []string{"mail", "import"}[w.dice(2)], []string{"", "k", "l"}[w.dice(3)],
		operation.UpstreamPolicy(w.dice(3)), int8(w.dice(3)*4), postpone)
	return operation.Command{Kind: operation.Submit, Org: org, ID: q.ID, Request: q}
}

func (w *world) report(s *operation.State) operation.Command {
	kind := []operation.CommandKind{
		operation.Start, operation.Progress, operation.Succeed, operation.Succeed, operation.Succeed, operation.Fail, operation.Fail,
		operation.Yield, operation.Stop, operation.Return,
	}[w.dice(10)]
	c := operation.Command{Kind: kind, Org: s.Org, ID: s.ID, Attempt: s.Attempt, Session: s.Session}
	if kind == operation.Start || w.dice(2) == 0 {
		c.StartedAt = w.now
	}
	switch kind {
	case operation.Fail:
		c.Failure = &operation.Failure{Code: "boom", Class: retry.Class(w.dice(4))}
	case operation.Yield:
		c.Event = []string{"", "mail"}[w.dice(2)]
		c.Until = w.now + operation.Time(w.dice(4))*1e6
	case operation.Progress:
		c.Progress, c.Carry = []byte("1"), []byte("2")
	}
	return c
}

// recover makes an engine from a journal, gives it what it has to read again, and settles it.
func (w *world) recover(e *partition.Engine) {
	e.Recovered()
	e.Grace(w.now)
	for _, id := range slices.Sorted(maps.Keys(w.beats)) {
		hb := w.beats[id]
		e.Hear(&hb, w.now)
	}
	cause := operation.Cause{Topic: "clock"}
	for _, c := range w.inputs {
		if !e.Read(c.Cause) {
			w.do(e, c)
			cause = c.Cause
		}
	}
	e.HeardThrough(w.now)
	e.Settle(cause, w.now)
}

// cut is the law that any prefix is a legal history. For every prefix of the last step's events an engine is made from what
// is left, reads again what its positions say is unread, and settles. It must come to where the whole step came to: the
// same operations, in the same statuses, waiting for the same things until the same times.
//
// Not the same are the order of the events; who was dispatched, since whose turn it is and the sessions' parts are not in
// the journal (so ready and dispatched count as one); and what followed from a lease that was lost, since a new engine
// grants a grace (a step with a lost lease is cut, but not compared). From the whole step's journal nothing may follow but
// dispatches, and refusals of reports: one that was an echo when it was read first, of which the journal has no trace, is
// read again, and may be of an old attempt by now.
// Then the world goes on with one of the engines, its clock being another one.
func (w *world) cut() error {
	whole, compare := w.journal, true
	for _, ev := range whole[w.step:] {
		compare = compare && ev.Kind != operation.LeaseWasLost && (ev.Failure == nil || ev.Failure.Code != "lease_lost")
	}
	want := outcome(w.ops)
	survivor := w.step + w.dice(len(whole)-w.step+1)
	for n := w.step; n <= len(whole); n++ {
		w.met.cuts++
		e := w.replayed(whole[:n])
		w.recover(e)
		f := newFold()
		for i := range whole[:n] {
			f.apply(&whole[i], operation.Place(i))
		}
		events := slices.Clone(e.Take())
		for i := range events {
			f.apply(&events[i], operation.Place(n+i))
			answer := events[i].Kind == operation.Rejected && events[i].Command.Report()
			if n == len(whole) && events[i].Kind != operation.Dispatched && !answer {
				return fmt.Errorf("nothing was cut off, but the recovered engine decides %s", describe(&events[i]))
			}
		}
		err := e.Check()
		if err == nil && compare {
			err = equal(want, outcome(f.ops))
		}
		if err != nil {
			for i := range events {
				w.note("  cut: %s", describe(&events[i]))
			}
			return fmt.Errorf("cut after %d of %d events: %w", n-w.step, len(whole)-w.step, err)
		}
		if n == survivor {
			w.e, w.fold, w.saved = e, f, nil
			w.journal = append(slices.Clone(whole[:n]), events...)
			w.note("crash: %d of %d events of the step are left, and then", n-w.step, len(whole)-w.step)
			for i := range events {
				w.note("  %4d %s", n+i, describe(&events[i]))
			}
		}
	}
	if w.dice(4) == 0 { // and what the recovered engine did is cut as well
		w.step = survivor
		return w.cut()
	}
	return nil
}

// behind has another owner take over, whose clock is behind. Times do not go back, and living sessions stay alive.
func (w *world) behind() error {
	w.now -= operation.Time(w.dice(30)) * 1e6
	w.note("another owner, whose clock says %s", seconds(w.now))
	w.e, w.saved = w.replayed(w.journal), nil
	lost := w.met.kinds[operation.LeaseWasLost]
	w.recover(w.e)
	if err := w.commit(); err != nil {
		return err
	}
	if w.met.kinds[operation.LeaseWasLost] > lost {
		return fmt.Errorf("a lease was lost within the grace of a new owner")
	}
	return w.e.Check()
}

// outcome is what must not depend on a crash.
func outcome(ops map[partition.Ref]operation.State) map[partition.Ref]string {
	out := make(map[partition.Ref]string, len(ops))
	for ref, s := range ops {
		status := s.Status.String()
		if s.Status == operation.StatusReady || s.Status == operation.StatusDispatched {
			status = "ready or dispatched"
		}
		out[ref] = fmt.Sprintf("%s holds=%b until=%d behind=%s blocked=%v failures=%d event=%s by=%v", status, s.Holds, s.Until, s.BlockedBy, s.Blocked, s.Failures, s.WaitsFor, s.By)
	}
	return out
}

func equal(want, got map[partition.Ref]string) error {
	for ref := range want {
		if want[ref] != got[ref] {
			return fmt.Errorf("expected %v to be\n%s\nbut it is\n%s", ref, want[ref], got[ref])
		}
	}
	if len(want) != len(got) {
		return fmt.Errorf("expected %d operations, but there are %d", len(want), len(got))
	}
	return nil
}

// save takes a checkpoint, as the actor would between two steps, and copies it as writing would.
func (w *world) save() {
	base := len(w.saved) == 0 || w.dice(5) == 0
	cp := w.e.Checkpoint(base)
	for _, list := range [][]*operation.State{cp.Ops, cp.Failed} {
		for i, s := range list {
			copied := *s
			list[i] = &copied
		}
	}
	if base {
		w.saved = nil
		w.met.checkpoints++
	} else {
		w.met.increments++
	}
	w.saved = append(w.saved, cp)
	w.note("checkpoint at %d, base %v: %d operations, %d gone, %d known, %d failed", cp.End, base, len(cp.Ops), len(cp.Gone), len(cp.Known), len(cp.Failed))
}

// restore is the law that a base, its increments and the journal after them give the engine. The world goes on with it.
func (w *world) restore() error {
	if len(w.saved) == 0 {
		return nil
	}
	w.met.restores++
	e := partition.New(w.cfg)
	for i := range w.saved {
		e.Restore(&w.saved[i])
	}
	e.Restored()
	for i := int(w.saved[len(w.saved)-1].End); i < len(w.journal); i++ {
		e.Replay(&w.journal[i], operation.Place(i))
	}
	if err := same("restoring", w.e, e); err != nil {
		return err
	}
	if err := w.marks(e.Outbox()); err != nil {
		return err
	}
	w.note("restored")
	w.recover(e)
	w.e = e
	return w.commit()
}

// drain is the law that no operation is lost: with generous sessions, handlers that succeed and people who resume what waits
// for them, every operation ends.
func (w *world) drain() error {
	w.note("drain")
	for range 1000 {
		if w.e.Live() == 0 {
			break
		}
		w.step, w.given = len(w.journal), len(w.inputs)
		for _, id := range sessionIDs {
			w.hear(partition.Heartbeat{Session: id, Room: 50, Types: []string{"import", "mail"}, Lease: 1000 * time.Second})
		}
		for _, ref := range slices.SortedFunc(maps.Keys(w.ops), func(a, b partition.Ref) int {
			return strings.Compare(string(a.ID)+a.Org, string(b.ID)+b.Org)
		}) {
			s := w.ops[ref]
			switch {
			case s.Status.Locked():
				w.give(operation.Command{Kind: operation.Succeed, Org: s.Org, ID: s.ID, Attempt: s.Attempt, Session: s.Session})
			case s.Holds&(operation.HoldPaused|operation.HoldEvent) != 0 || s.Blocked:
				w.give(operation.Command{Kind: operation.Resume, Org: s.Org, ID: s.ID})
			}
		}
		if err := w.settle(); err != nil {
			return err
		}
		if at := w.e.NextWake(); at > w.now && at < w.now.Add(900*time.Second) {
			w.now = at
		} else {
			w.now += 1e6
		}
	}
	for ref, s := range w.ops {
		if !s.Status.Terminal() {
			return fmt.Errorf("%v never ended: it is %s %s, behind %s, blocked %v", ref, s.Status, s.Wait(), s.BlockedBy, s.Blocked)
		}
	}
	if n := w.e.Live(); n != 0 {
		return fmt.Errorf("all operations have ended, but the engine holds %d", n)
	}
	return w.replay()
}
