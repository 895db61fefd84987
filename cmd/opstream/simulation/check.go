package simulation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/consumers/scheduler"
	"github.com/opstream/opstream/consumers/worker"
	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/producers/answers"
	"github.com/opstream/opstream/producers/command"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/projector"
	"github.com/opstream/opstream/schemas"
)

// ref names an operation: the same id may live in two partitions, when it comes with two tokens.
type ref struct {
	partition int32
	org       string
	id        operation.ID
}

func (r ref) String() string { return fmt.Sprintf("%s/%s on %d", r.org, r.id, r.partition) }

// entry is a record of the journal.
type entry struct {
	at     time.Duration // when its writer sent it, by the world's time
	valid  bool
	event  operation.Event
	status operation.Status // of its operation after it
}

// track is what the journal says of an operation.
type track struct {
	state      operation.State
	free       operation.Place // of the event since which no predecessor holds it back
	retried    operation.Place // of the last retry by hand
	dispatched map[operation.Attempt]time.Duration
	given      map[operation.Attempt]string // the request's data when the attempt was dispatched
	succeeded  operation.Attempt
	moments    []moment
}

// fold is the journal as a reader who trusts nobody has it.
type fold struct {
	entries map[int32][]entry
	ops     map[ref]*track
	order   []ref
	causes  map[int32]map[operation.Cause]bool
	deleted map[ref]bool // without having been
	void    int
	events  int
	bad     []string
}

// reader is a Kafka client without faults.
func (w *world) reader(opts ...kgo.Opt) ([]kgo.Opt, *kgo.Client, error) {
	all := append([]kgo.Opt{
		kgo.SeedBrokers(address), kgo.Dialer(w.net.virtual.DialContext), kgo.DisableClientMetrics(), kgo.MaxVersions(versions()),
		kgo.MetadataMinAge(50 * time.Millisecond), kgo.FetchMaxWait(100 * time.Millisecond),
	}, opts...)
	c, err := kgo.NewClient(all...)
	return all, c, err
}

// records reads a whole topic.
func (w *world) records(ctx context.Context, topic string) (map[int32][]*kgo.Record, error) {
	_, c, err := w.reader()
	if err != nil {
		return nil, err
	}
	ends, err := kadm.NewClient(c).ListEndOffsets(ctx, topic)
	c.Close()
	if err != nil {
		return nil, err
	}
	from, left := map[int32]kgo.Offset{}, map[int32]int64{}
	for n, o := range ends[topic] {
		if o.Offset > 0 {
			from[n], left[n] = kgo.NewOffset().At(0), o.Offset
		}
	}
	out := map[int32][]*kgo.Record{}
	if len(left) == 0 {
		return out, nil
	}
	if _, c, err = w.reader(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from})); err != nil {
		return nil, err
	}
	defer c.Close()
	for len(left) > 0 {
		fetches := c.PollFetches(ctx)
		if errs := fetches.Errors(); len(errs) > 0 {
			return nil, fmt.Errorf("read %s: %w", topic, errs[0].Err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			out[r.Partition] = append(out[r.Partition], r)
			if r.Offset+1 >= left[r.Partition] {
				delete(left, r.Partition)
			}
		})
	}
	return out, nil
}

// fold reads the journal and judges it.
func (w *world) fold(ctx context.Context) (*fold, error) {
	records, err := w.records(ctx, w.topics.Journal())
	if err != nil {
		return nil, err
	}
	f := &fold{entries: map[int32][]entry{}, ops: map[ref]*track{}, causes: map[int32]map[operation.Cause]bool{}, deleted: map[ref]bool{}}
	for n := range w.plan.Partitions {
		f.causes[n] = map[operation.Cause]bool{}
		var chain schemas.Chain
		part := folding{f: f, n: n, tokens: map[[2]string][]*track{}, read: map[string]int64{}}
		for _, rec := range records[n] {
			e := entry{at: rec.Timestamp.Sub(w.history.began)}
			verdict, err := chain.Check(rec)
			if err != nil {
				f.faulty("journal %d: %v", n, err)
				break
			}
			if e.event, err = schemas.DecodeEvent(rec); err != nil {
				f.faulty("journal %d offset %d cannot be read: %v", n, rec.Offset, err)
				break
			}
			if e.valid = verdict == schemas.Valid; e.valid {
				f.events++
				part.apply(&e, operation.Place(rec.Offset))
			} else {
				f.void++
			}
			f.entries[n] = append(f.entries[n], e)
		}
	}
	return f, nil
}

func (f *fold) faulty(format string, args ...any) {
	f.bad = append(f.bad, fmt.Sprintf(format, args...))
}

// folding is the fold of one partition.
type folding struct {
	f      *fold
	n      int32
	now    operation.Time
	read   map[string]int64
	tokens map[[2]string][]*track
}

func (p *folding) apply(e *entry, place operation.Place) {
	ev := &e.event
	say := func(format string, args ...any) {
		p.f.faulty("journal %d-%d (%s %s/%s): %s", p.n, place, ev.Kind, ev.Org, ev.ID, fmt.Sprintf(format, args...))
	}
	if ev.At < p.now {
		say("time goes back from %s to %s", p.now.Go(), ev.At.Go())
	}
	p.now = ev.At
	switch ev.Cause.Topic {
	case schemas.TopicRequests, schemas.TopicReports, schemas.TopicSignals:
		if last := p.read[ev.Cause.Topic]; ev.Cause.Offset < last {
			say("it was decided because of %s %d after one because of %d: an input was read twice", ev.Cause.Topic, ev.Cause.Offset, last)
		}
		if ev.Kind != operation.Started { // it alone does not count as read, see package partition
			p.read[ev.Cause.Topic] = ev.Cause.Offset
		}
		p.f.causes[p.n][ev.Cause] = true
	}
	if !ev.Kind.Changes() {
		r := ref{p.n, ev.Org, ev.ID}
		if t := p.f.ops[r]; t != nil {
			e.status = t.state.Status
		}
		return
	}
	r := ref{p.n, ev.Org, ev.ID}
	t := p.f.ops[r]
	if t == nil {
		if ev.Kind == operation.Deleted { // what never was may be deleted, and never is from then on
			p.f.deleted[r] = true
			return
		}
		t = &track{dispatched: map[operation.Attempt]time.Duration{}, given: map[operation.Attempt]string{}}
		p.f.ops[r] = t
		p.f.order = append(p.f.order, r)
	}
	before := t.state
	t.state.Apply(ev, place)
	s := &t.state
	e.status = s.Status
	t.moments = append(t.moments, moment{place, e.at, *s})
	if before.Status == operation.StatusAbsent && ev.Kind != operation.Requested {
		say("it was not requested")
		return
	}
	if before.Status.Terminal() && (ev.Kind != operation.Retried || before.Status != operation.StatusFailed) && (ev.Kind != operation.Deleted || before.Status == operation.StatusDeleted) {
		say("it had ended: %s", before.Status)
	}
	switch ev.Kind {
	case operation.Requested:
		if before.Status != operation.StatusAbsent {
			say("it was requested before")
		}
		if q := ev.Request; q.DependencyToken != "" {
			key := [2]string{ev.Org, q.DependencyToken}
			p.tokens[key] = append(p.tokens[key], t)
		}
	case operation.Retried:
		t.retried = place
	case operation.Dispatched:
		if before.Status != operation.StatusReady || ev.Attempt != before.Attempt+1 {
			say("it was %s after attempt %d, and now attempt %d is dispatched", before.Status, before.Attempt, ev.Attempt)
		}
		t.dispatched[ev.Attempt], t.given[ev.Attempt] = e.at, compact(s.Request.Data)
		p.inOrder(t, say)
		p.byPriority(t, say)
	case operation.Started, operation.Progressed, operation.Returned, operation.Succeeded, operation.AttemptFailed,
		operation.LeaseWasLost, operation.Yielded, operation.Failed, operation.PauseRequested, operation.CancelRequested:
		if !before.Open(ev.Attempt, ev.Session) {
			say("attempt %d of session %s is not the open one: %s, attempt %d of %s", ev.Attempt, ev.Session, before.Status, before.Attempt, before.Session)
		}
	}
	if ev.Kind == operation.Succeeded {
		t.succeeded = ev.Attempt
	}
	if s.Holds&operation.HoldDependency != 0 {
		t.free = math.MaxInt64
	} else if before.Holds&operation.HoldDependency != 0 || before.Status == operation.StatusAbsent || ev.Kind == operation.Retried {
		t.free = place
	}
}

// inOrder checks that a token's operations run one after another, in the order of their requests.
func (p *folding) inOrder(t *track, say func(string, ...any)) {
	q := t.state.Request
	if q.DependencyToken == "" {
		return
	}
	for _, other := range p.tokens[[2]string{t.state.Org, q.DependencyToken}] {
		o := &other.state
		switch {
		case other == t || o.Status.Terminal():
		case o.Status.Locked():
			say("%s of the same token is %s", o.ID, o.Status)
		case o.RequestedPlace < t.state.RequestedPlace && other.retried < t.free:
			say("%s of the same token came before it and is %s", o.ID, o.Status)
		}
	}
}

// byPriority checks that nothing more urgent of the same type is ready when an operation is dispatched.
func (p *folding) byPriority(t *track, say func(string, ...any)) {
	q := t.state.Request
	for _, r := range p.f.order {
		if o := &p.f.ops[r].state; r.partition == p.n && o.Status == operation.StatusReady && o.Request.Type == q.Type && o.Request.Priority > q.Priority {
			say("it has priority %d, and %s with priority %d is ready", q.Priority, o.ID, o.Request.Priority)
		}
	}
}

// drainWithin bounds the quiet phase, in virtual time: leases, back-offs and time limits are seconds.
const drainWithin = 4 * time.Minute

// drain resumes what waits for people, until everything has ended.
func (w *world) drain(ctx context.Context, res *Result) error {
	opts, c, err := w.reader()
	if err != nil {
		return err
	}
	c.Close()
	begin, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	operator, err := answers.New(begin, answers.Config{Brokers: []string{address}, Topics: w.topics, Options: opts})
	if err != nil {
		return fmt.Errorf("operator: %w", err)
	}
	reading, stop := context.WithCancel(ctx)
	read := make(chan error, 1)
	go func() { read <- operator.Run(reading) }()
	defer func() {
		stop()
		<-read //nolint:errcheck // whatever ended it, what it should have heard is missed below
		closing, end := context.WithTimeout(ctx, 3*time.Second)
		defer end()
		_ = operator.Close(closing) // everything was answered, or is a violation already
	}()
	began := w.history.now()
	for round := 0; ; round++ {
		w.at(w.history.now() + 2*time.Second)
		f, err := w.fold(ctx)
		if err != nil {
			return err
		}
		unread, err := w.unread(ctx, f)
		if err != nil {
			return err
		}
		live := f.live()
		if len(live) == 0 && len(unread) == 0 {
			w.level(ctx)
			w.review(reading, f)
			return nil
		}
		if w.history.now()-began > drainWithin {
			if g := w.kafka.GroupInfo("opstream.scheduler"); g != nil {
				w.history.note("world", "the group of the schedulers: %s, generation %d, members %+v", g.State, g.Epoch, g.Members)
			}
			for _, r := range live {
				s := &f.ops[r].state
				w.violation("%s has not ended within %s of quiet: %s %s, attempt %d at %q, blocked by %q", r, drainWithin, s.Status, s.Wait(), s.Attempt, s.Session, s.BlockedBy)
			}
			for _, text := range unread {
				w.violation("after %s of quiet nothing has come of %s", drainWithin, text)
			}
			return nil
		}
		for _, r := range live {
			s := &f.ops[r].state
			if s.Status != operation.StatusWaiting || s.Holds == operation.HoldDependency && !s.Blocked {
				continue
			}
			cmd := &operation.Command{Kind: operation.Resume, Org: r.org, ID: r.id, CommandID: fmt.Sprintf("quiet-%d-%s", round, r.id), By: operation.By{Who: "operator"}}
			key := s.Request.Key()
			o := opPlan{org: r.org, id: string(r.id), key: s.Request.ExplicitKey, token: s.Request.DependencyToken}
			if o.target() != key {
				w.violation("%s: expected the key %q, but it is %q", r, o.target(), key)
			}
			w.give("operator", &voice{answers: operator, ctx: reading}, commandPlan{timeout: 5 * time.Second}, &o, cmd)
		}
		w.calling.Wait()
	}
}

// live lists the operations that have not ended.
func (f *fold) live() []ref {
	var out []ref
	for _, r := range f.order {
		if !f.ops[r].state.Status.Terminal() {
			out = append(out, r)
		}
	}
	return out
}

// unread lists the requests that no event names as its cause.
func (w *world) unread(ctx context.Context, f *fold) ([]string, error) {
	records, err := w.records(ctx, w.topics.Requests())
	if err != nil {
		return nil, err
	}
	signals, err := w.records(ctx, w.topics.Signals())
	if err != nil {
		return nil, err
	}
	buried, err := w.buried(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	sent := map[forwarded]bool{}
	for n := range w.plan.Partitions {
		for _, rec := range records[n] {
			if f.causes[n][operation.Cause{Topic: schemas.TopicRequests, Offset: rec.Offset}] || buried[[2]int64{int64(n), rec.Offset}] {
				continue
			}
			cmd, err := schemas.DecodeCommand(rec)
			out = append(out, fmt.Sprintf("request %d-%d (%s %s/%s, %v)", n, rec.Offset, cmd.Kind, cmd.Org, cmd.ID, err))
		}
		for _, rec := range signals[n] {
			if !f.causes[n][operation.Cause{Topic: schemas.TopicSignals, Offset: rec.Offset}] {
				out = append(out, fmt.Sprintf("signal %d-%d", n, rec.Offset))
			}
			inner, err := schemas.DecodeForwarded(rec)
			if err != nil {
				w.violation("signal %d-%d cannot be read: %v", n, rec.Offset, err)
				continue
			}
			cmd, _ := schemas.DecodeCommand(inner) // a refusal names the operation, too
			sent[forwarded{n, cmd.Org, string(cmd.ID), cmd.CommandID}] = true
		}
	}
	for n, entries := range f.entries {
		for at, e := range entries {
			if ev := &e.event; e.valid && ev.Kind == operation.Forwarded {
				inner, err := schemas.UnwrapRequest(ev.Body)
				if err != nil {
					w.violation("the forwarded request at %d-%d cannot be read: %v", n, at, err)
					continue
				}
				cmd, _ := schemas.DecodeCommand(inner)
				if !sent[forwarded{ev.To, cmd.Org, string(cmd.ID), cmd.CommandID}] {
					out = append(out, fmt.Sprintf("the forwarding at %d-%d to %d", n, at, ev.To))
				}
			}
		}
	}
	return out, nil
}

// forwarded names a request that one partition tells another.
type forwarded struct {
	to               int32
	org, id, command string
}

// buried lists the records, by partition and offset of requests, that stand among the dead letters.
func (w *world) buried(ctx context.Context) (map[[2]int64]bool, error) {
	records, err := w.records(ctx, w.topics.DeadLetter())
	if err != nil {
		return nil, err
	}
	out := map[[2]int64]bool{}
	for _, rec := range records[0] {
		var at [2]int64
		for _, h := range rec.Headers {
			switch h.Key {
			case schemas.HeaderDeadPartition:
				at[0], err = strconv.ParseInt(string(h.Value), 10, 64)
			case schemas.HeaderDeadOffset:
				at[1], err = strconv.ParseInt(string(h.Value), 10, 64)
			}
			if err != nil {
				return nil, fmt.Errorf("dead letter %d: %w", rec.Offset, err)
			}
		}
		out[at] = true
	}
	return out, nil
}

// level waits until the tables have everything.
func (w *world) level(ctx context.Context) {
	ends := map[int32]int64{}
	for n := range w.plan.Partitions {
		ends[n] = w.kafka.PartitionInfo(w.topics.Journal(), n).HighWatermark
	}
	for i := range w.plan.Projectors {
		p := w.parts[fmt.Sprintf("projector%d", i)]
		_, ready := p.current()
		pr, ok := ready.(*node)
		if !ok {
			w.violation("%s does not run in the quiet phase", p.name)
			continue
		}
		for n, end := range ends {
			if end == 0 {
				continue
			}
			waiting, cancel := context.WithTimeout(ctx, 30*time.Second)
			err := pr.projector.WaitFor(waiting, n, operation.Place(end-1))
			cancel()
			if err != nil {
				w.violation("the tables of %s do not come level: %v", p.name, err)
			}
		}
	}
}

// review reads everything through every node, as the end of the quiet phase has it.
func (w *world) review(ctx context.Context, f *fold) {
	var after api.Positions
	for n := range w.plan.Partitions {
		if end := w.kafka.PartitionInfo(w.topics.Journal(), n).HighWatermark; end > 0 {
			after = append(after, api.Position{Partition: n, Place: operation.Place(end - 1)})
		}
	}
	v := &voice{browser: newBrowser(w.net.virtual.DialContext), ctx: ctx}
	orgs := map[string]bool{}
	for _, r := range f.order {
		if orgs[r.org] {
			continue
		}
		orgs[r.org] = true
		for i := range w.plan.Projectors {
			for _, kind := range []readKind{readOne, readHistory, readList, readCounts} {
				w.look("operator", v, &readPlan{node: i, kind: kind, limit: 50}, r.org, string(r.id), after.String())
			}
		}
	}
	// sleep: virtual time, in which what changed last is told to those who listen
	time.Sleep(time.Second)
	w.calling.Wait()
	v.browser.transport.CloseIdleConnections()
	w.history.mu.Lock()
	defer w.history.mu.Unlock()
	for _, s := range w.history.streams {
		s.final = s.whole
	}
}

// check judges the whole history.
func (w *world) check(ctx context.Context, res *Result) error {
	f, err := w.fold(ctx)
	if err != nil {
		return err
	}
	w.tell(f)
	for _, text := range f.bad {
		w.violation("%s", text)
	}
	w.checkCalls(f)
	w.checkHandlers(f)
	w.checkReads(f)
	w.checkStreams(f)
	if err := w.checkRecovery(ctx); err != nil {
		return err
	}
	if err := w.checkTables(ctx); err != nil {
		return err
	}
	h := w.history
	res.Stats.Operations, res.Stats.Calls, res.Stats.Handlers = len(f.ops), len(h.calls), len(h.runs)
	res.Stats.Reads, res.Stats.Asked = len(h.reads), 0
	for _, s := range h.streams {
		res.Stats.Heard += len(s.changes)
	}
	res.Stats.Events, res.Stats.Void, res.Stats.Recovered = f.events, f.void, int(w.inspected.Load())
	for _, k := range h.calls {
		if k.err == nil {
			res.Stats.Answers++
		}
		if k.plan.asks() {
			res.Stats.Asked++
		}
	}
	return nil
}

// tell adds the journal to the history.
func (w *world) tell(f *fold) {
	w.history.mu.Lock()
	defer w.history.mu.Unlock()
	for n := range w.plan.Partitions {
		for at, e := range f.entries[n] {
			ev := &e.event
			text := fmt.Sprintf("%d-%d %s", n, at, ev.Kind)
			if !e.valid {
				text += " VOID"
			}
			if ev.ID != "" {
				text += fmt.Sprintf(" %s/%s", ev.Org, ev.ID)
			}
			if ev.Attempt > 0 {
				text += fmt.Sprintf(" attempt %d session %.8s", ev.Attempt, ev.Session)
			}
			if ev.Request != nil && ev.Request.DependencyToken != "" {
				text += " token " + ev.Request.DependencyToken
			}
			if ev.Upstream != "" {
				text += fmt.Sprintf(" upstream %s", ev.Upstream)
			}
			if ev.Holds != 0 {
				text += fmt.Sprintf(" holds %b", ev.Holds)
			}
			if ev.CommandID != "" {
				text += fmt.Sprintf(" command %s", ev.CommandID)
			}
			if ev.Code != "" {
				text += fmt.Sprintf(" %s %s", ev.Command, ev.Code)
			}
			if ev.Failure != nil {
				text += " failure " + ev.Failure.Code
			}
			if ev.Owner != "" {
				text += " by " + ev.Owner
			}
			text += fmt.Sprintf(" because of %s/%d at %s", ev.Cause.Topic, ev.Cause.Offset, ev.At.Go().Format("15:04:05.000"))
			w.history.lines = append(w.history.lines, line{e.at, "journal", text})
		}
	}
}

func (w *world) checkCalls(f *fold) {
	ids := map[string]int{}
	id := func(k *call) string {
		if k.sent.Kind == operation.Submit { // and so has the request
			return "the request of " + k.sent.Org + "/" + string(k.sent.ID)
		}
		return k.sent.CommandID
	}
	for _, k := range w.history.calls {
		ids[id(k)]++
	}
	for _, k := range w.history.calls {
		what := fmt.Sprintf("%s's %s %s/%s (command %q) at %s", k.who, k.sent.Kind, k.sent.Org, k.sent.ID, k.sent.CommandID, k.began)
		if k.err != nil || k.acked {
			r := ref{schemas.PartitionFor([]byte(k.op.target()), w.plan.Partitions), k.sent.Org, k.sent.ID}
			if k.acked && !k.plan.garbage && k.sent.Kind == operation.Submit && f.ops[r] == nil && !f.deleted[r] {
				w.violation("%s was safe on the log, but there is no such operation", what)
			}
			if (k.refused || errors.Is(k.err, command.ErrUnavailable) && !errors.Is(k.err, command.ErrOutcomeUnknown)) && ids[id(k)] == 1 {
				for n, entries := range f.entries {
					for at, e := range entries {
						ev := &e.event
						if e.valid && ev.Org == k.sent.Org && ev.ID == k.sent.ID && (k.sent.Kind == operation.Submit && ev.Kind == operation.Requested || k.sent.Kind != operation.Submit && ev.CommandID == k.sent.CommandID) {
							w.violation("%s was answered with %q, but journal %d-%d is of it", what, k.err, n, at)
						}
					}
				}
			}
			continue
		}
		a := k.answer
		entries := f.entries[a.Partition]
		if int64(a.Place) >= int64(len(entries)) || !entries[a.Place].valid {
			w.violation("%s was answered with the position %d-%d, which is void or not there", what, a.Partition, a.Place)
			continue
		}
		e := entries[a.Place]
		ev := &e.event
		if ev.Kind != a.Event || ev.Org != k.sent.Org || ev.ID != k.sent.ID || ev.CommandID != k.sent.CommandID && k.sent.Kind != operation.Submit {
			w.violation("%s was answered with the position %d-%d as %s, but there is %s %s/%s of command %q", what, a.Partition, a.Place, a.Event, ev.Kind, ev.Org, ev.ID, ev.CommandID)
			continue
		}
		if e.at > k.ended {
			w.violation("%s was answered at %s with the position %d-%d, which was written at %s", what, k.ended, a.Partition, a.Place, e.at)
		}
		if (ev.Kind == operation.Rejected) != (a.Rejection != nil) || a.Rejection != nil && a.Rejection.Code != ev.Code {
			w.violation("%s was answered with %v, but the journal says %q at %d-%d", what, a.Rejection, ev.Code, a.Partition, a.Place)
		}
		if k.shown != nil {
			w.checkRow(f, what, k.shown, true, api.Positions{a.Position()}, k.ended)
			if k.shown.Status != a.Status.String() {
				w.violation("%s was answered that the operation is %s, and shown that it is %s", what, a.Status, k.shown.Status)
			}
		} else if a.Rejection == nil && a.Status != e.status && e.status != operation.StatusAbsent {
			w.violation("%s was answered that the operation is %s, but at %d-%d it is %s", what, a.Status, a.Partition, a.Place, e.status)
		}
	}
}

// until is when a handler has no say any more: it returned, its process fell, it was told that its lease is lost, or it was given up.
func (w *world) until(r *handlerRun, t *track) time.Duration {
	end := r.ended
	if end < 0 {
		end = math.MaxInt64
	}
	limit := w.plan.TimeLimit
	if q := t.state.Request; q != nil && q.TimeLimit > 0 {
		limit = q.TimeLimit
	}
	end = min(end, r.began+limit+returnGrace)
	if r.interrupted >= 0 && errors.Is(r.cause, worker.ErrLeaseLost) {
		end = min(end, r.interrupted)
	}
	for _, lost := range r.host.lost { // a context that has ended for another reason does not tell
		if lost >= r.began {
			end = min(end, lost)
		}
	}
	return end
}

func (w *world) checkHandlers(f *fold) {
	type lane struct {
		partition int32
		org, name string
	}
	lanes := map[lane][]*handlerRun{}
	var order []lane
	add := func(l lane, r *handlerRun) {
		if lanes[l] == nil {
			order = append(order, l)
		}
		lanes[l] = append(lanes[l], r)
	}
	ran := map[ref]map[operation.Attempt]*handlerRun{}
	for _, r := range w.history.runs {
		at := ref{r.partition, r.org, r.id}
		t := f.ops[at]
		if t == nil {
			w.violation("a handler ran %s, which the journal does not know", at)
			continue
		}
		if ran[at] == nil {
			ran[at] = map[operation.Attempt]*handlerRun{}
		}
		if first := ran[at][r.attempt]; first != nil {
			w.violation("attempt %d of %s was run twice: on %s at %s, and on %s at %s", r.attempt, at, first.host.name, first.began, r.host.name, r.began)
		}
		ran[at][r.attempt] = r
		switch sent, ok := t.dispatched[r.attempt]; {
		case !ok:
			w.violation("attempt %d of %s was run on %s at %s, but the journal has not dispatched it", r.attempt, at, r.host.name, r.began)
		case t.given[r.attempt] != r.data:
			w.violation("attempt %d of %s was given %s on %s, but the journal says %s", r.attempt, at, r.data, r.host.name, t.given[r.attempt])
		case sent > r.began:
			w.violation("attempt %d of %s was run on %s at %s, before it was dispatched at %s", r.attempt, at, r.host.name, r.began, sent)
		}
		add(lane{r.partition, r.org, "operation " + string(r.id)}, r)
		if token := t.state.Request.DependencyToken; token != "" {
			add(lane{r.partition, r.org, "token " + token}, r)
		}
	}
	for _, l := range order {
		runs := lanes[l]
		slices.SortStableFunc(runs, func(a, b *handlerRun) int { return int(a.began - b.began) })
		var busy *handlerRun
		for _, r := range runs {
			if busy != nil {
				if end := w.until(busy, f.ops[ref{busy.partition, busy.org, busy.id}]); end > r.began {
					w.violation("%s of %s on %d: attempt %d of %s ran on %s from %s to %s, and attempt %d of %s began on %s at %s",
						l.name, l.org, l.partition, busy.attempt, busy.id, busy.host.name, busy.began, end, r.attempt, r.id, r.host.name, r.began)
				}
			}
			busy = r
		}
	}
	for _, at := range f.order {
		if t := f.ops[at]; t.succeeded > 0 && ran[at][t.succeeded] == nil {
			w.violation("%s succeeded in attempt %d, which nobody ran", at, t.succeeded)
		}
	}
}

func (w *world) checkRecovery(ctx context.Context) error {
	opts, c, err := w.reader()
	if err != nil {
		return err
	}
	c.Close()
	cfg := w.schedulerConfig(w.newHost("checker"), "")
	cfg.Client = opts
	cfg.Logger = slog.New(slog.DiscardHandler)
	for n := range w.plan.Partitions {
		quick, whole, err := scheduler.Inspect(ctx, cfg, n)
		if err != nil {
			if w.quiet.Load() {
				w.violation("partition %d cannot be recovered: %v", n, err)
			}
			continue // faults of the broker hit everybody, and checkpoints may be trimmed under the reader
		}
		w.inspected.Add(int64(strings.Count(whole, "\noperation ")))
		if quick != whole {
			a, b := strings.Split(quick, "\n"), strings.Split(whole, "\n")
			for i := range max(len(a), len(b)) {
				x, y := "nothing", "nothing"
				if i < len(a) {
					x = a[i]
				}
				if i < len(b) {
					y = b[i]
				}
				if x != y {
					w.violation("partition %d recovered from checkpoints differs from the journal's fold in line %d: %q, but the journal says %q", n, i, x, y)
					break
				}
			}
		}
	}
	return nil
}

// inspect recovers the partitions again and again while the faults last, when there is much to recover.
func (w *world) inspect(ctx context.Context) {
	r := chance(w.plan.Seed, "inspections")
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(between(r, time.Second, 8*time.Second)):
		}
		if w.quiet.Load() {
			return
		}
		bounded, cancel := context.WithTimeout(ctx, 20*time.Second)
		if err := w.checkRecovery(bounded); err != nil {
			w.violation("no client to recover with: %v", err)
		}
		cancel()
	}
}

func (w *world) checkTables(ctx context.Context) error {
	opts, c, err := w.reader()
	if err != nil {
		return err
	}
	c.Close()
	for i, store := range w.stores {
		report, err := projections.Verify(ctx, store, projector.Journal{Client: opts, Topics: w.topics})
		if err != nil {
			w.violation("the tables of projector%d cannot be compared: %v", i, err)
			continue
		}
		for _, d := range report.Differences {
			w.violation("projector%d: %s", i, d)
		}
	}
	return nil
}
