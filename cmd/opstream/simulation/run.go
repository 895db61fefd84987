package simulation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/projections/projector"
	"github.com/opstream/opstream/schemas"
)

// Result is what became of a seed.
type Result struct {
	Plan       *Plan
	Violations []string
	Stats      Stats
	history    *history
}

// Stats tell what a run has tried.
type Stats struct {
	Virtual time.Duration // how long it took in its own time
	Drained time.Duration // how long the quiet phase took

	Operations, Calls, Answers, Handlers, Events, Void int

	Asked int // calls through the API
	Reads int // through the API
	Heard int // changes that clients were told of

	Recovered int // live operations that were recovered from checkpoints and from the journal, and were the same
}

// Write shows the history, one line an event.
func (r *Result) Write(out io.Writer) {
	p := r.Plan
	fmt.Fprintf(out, "seed %d: %d partitions, %d inboxes, %d schedulers, %d workers with %d slots, %d projectors, %d clients, lease %s (workers' %s), time limit %s\n",
		p.Seed, p.Partitions, p.Inboxes, p.Schedulers, p.Workers, p.Slots, p.Projectors, p.Clients, p.Lease, p.WorkerLease, p.TimeLimit)
	r.history.write(out)
}

// Run carries out a plan, in a bubble of testing/synctest, and judges it.
func Run(ctx context.Context, p *Plan) (*Result, error) {
	w, err := newWorld(ctx, p)
	if err != nil {
		return nil, err
	}
	res := &Result{Plan: p, history: w.history}
	living, end := context.WithCancel(ctx)
	for _, name := range w.names {
		if !isRival(name) {
			w.parts[name].up(living)
		}
	}
	w.running.Go(func() { w.nurse(living) })
	w.running.Go(func() { w.inspect(living) })
	w.unfold(living)
	w.calm(living)
	before := w.history.now()
	err = w.drain(living, res)
	res.Stats.Drained = w.history.now() - before
	for _, name := range w.names {
		w.parts[name].down()
	}
	end()
	w.calling.Wait()
	w.running.Wait()
	res.Stats.Virtual = w.history.now()
	if err == nil {
		err = w.check(ctx, res)
	}
	res.Violations = w.bad
	return res, errors.Join(err, w.close())
}

// unfold carries out commands and faults at their times.
func (w *world) unfold(ctx context.Context) {
	commands, reads, faults := w.plan.Commands, w.plan.Reads, w.plan.Faults
	for len(commands)+len(reads)+len(faults) > 0 {
		next, do := time.Duration(math.MaxInt64), func() {}
		if len(faults) > 0 {
			next, do = faults[0].at, func() { w.fault(ctx, faults[0]); faults = faults[1:] }
		}
		if len(reads) > 0 && reads[0].at < next {
			next, do = reads[0].at, func() { w.read(&reads[0]); reads = reads[1:] }
		}
		if len(commands) > 0 && commands[0].at <= next {
			next, do = commands[0].at, func() { w.command(commands[0]); commands = commands[1:] }
		}
		w.at(next)
		do()
	}
	w.at(w.plan.Faulty)
}

// at waits for a time of the plan.
func (w *world) at(t time.Duration) {
	if wait := t - w.history.now(); wait > 0 {
		// sleep: virtual time, and it is the plan that says when
		time.Sleep(wait)
	}
}

// later runs fn after d, or when the faults are over, whichever comes first.
func (w *world) later(d time.Duration, fn func()) {
	left := max(0, w.plan.Faulty-w.history.now())
	time.AfterFunc(min(d, left), fn)
}

func (w *world) fault(ctx context.Context, f faultPlan) {
	w.history.note("fault", "%s", &f)
	p := w.parts[f.part]
	switch f.kind {
	case crash:
		arrive, done := p.crash(f.late)
		w.later(f.ghost, arrive)
		w.later(f.lasts, func() { w.revive(ctx, p, done) })
	case stop:
		done := p.down()
		w.later(f.lasts, func() { w.revive(ctx, p, done) })
	case cutOff:
		if l, _ := p.current(); l != nil {
			l.host.sever()
			w.later(f.lasts, l.host.mend)
		}
	case holdUp:
		if l, _ := p.current(); l != nil {
			l.host.hold()
			w.later(f.lasts, l.host.release)
		}
	case onRequest:
		if l, _ := p.current(); l != nil {
			for range f.times {
				l.host.arm(f.net)
			}
			w.later(f.lasts, l.host.disarm)
		}
	case trip:
		l, _ := p.current()
		if l == nil {
			return
		}
		h := l.host
		h.mu.Lock()
		h.fell = func(late bool) {
			w.history.note(h.name, "falls")
			_, done := p.crashOf(l, late)
			w.later(f.ghost, h.release)
			w.later(f.lasts, func() { w.revive(ctx, p, done) })
		}
		h.mu.Unlock()
		h.arm(f.net)
	case atBroker:
		handle := w.kafka.Fault(kfake.Fault{Keys: f.keys, Topic: schemas.DefaultPrefix + f.topic, Err: f.err, Count: f.times})
		w.later(f.lasts, handle.Remove)
	case clockJump:
		p.clock.skew.Add(int64(f.by))
	case rival:
		p.up(ctx)
		if l, _ := p.current(); f.late && l != nil {
			// Longer than its session: others have the partitions when it wakes.
			w.later(f.lasts, l.host.hold)
			w.later(f.lasts+f.ghost, l.host.release)
			w.later(f.lasts+f.ghost+time.Second, func() { p.crash(false) })
			return
		}
		w.later(f.lasts, func() { p.crash(false) })
	case echo:
		w.running.Go(func() { w.echo(ctx, &f) })
	case trim:
		w.running.Go(func() { w.trim(ctx, &f) })
	case rehash:
		w.kafka.RehashCoordinators()
	}
}

// echo reports ends of attempts again, some of them as other ends: an attempt that has ended has ended.
func (w *world) echo(ctx context.Context, f *faultPlan) {
	bounded, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	records, err := w.records(bounded, w.topics.Reports())
	if err != nil {
		w.history.note("world", "there is no echo: %v", err)
		return
	}
	var ends []*kgo.Record
	for n := range w.plan.Partitions {
		for _, rec := range records[n] {
			switch cmd, err := schemas.DecodeReport(rec); {
			case err != nil:
				w.violation("report %d-%d cannot be read: %v", n, rec.Offset, err)
			case cmd.Kind != operation.Start && cmd.Kind != operation.Progress:
				ends = append(ends, rec)
			}
		}
	}
	if len(ends) == 0 {
		return
	}
	_, client, err := w.reader(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		w.violation("no client for an echo: %v", err)
		return
	}
	defer client.Close()
	identify(bounded, client)
	r := chance(w.plan.Seed, "echo at "+f.at.String())
	for range f.times {
		rec := ends[r.IntN(len(ends))]
		cmd, _ := schemas.DecodeReport(rec) // it could be read above
		if cmd.Result = nil; cmd.Kind == operation.Succeed {
			cmd.Kind, cmd.Failure = operation.Fail, &operation.Failure{Code: "echo", Message: "said too late"}
		} else {
			cmd.Kind, cmd.Failure, cmd.Carry, cmd.Until, cmd.Event = operation.Succeed, nil, nil, 0, ""
		}
		again := schemas.EncodeReport(w.topics, &cmd, rec.Key)
		if r.IntN(2) == 0 {
			again = &kgo.Record{Topic: rec.Topic, Key: rec.Key, Value: rec.Value, Headers: rec.Headers}
		}
		again.Partition = rec.Partition
		err := put(bounded, client, again)
		w.history.note("world", "echoes report %d-%d of %s attempt %d as %s: %v", rec.Partition, rec.Offset, cmd.ID, cmd.Attempt, cmd.Kind, err)
	}
}

// trim has the broker forget what a topic holds, as it does with what is older than it has to keep.
func (w *world) trim(ctx context.Context, f *faultPlan) {
	_, client, err := w.reader()
	if err != nil {
		w.violation("no client to trim with: %v", err)
		return
	}
	defer client.Close()
	bounded, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	admin, topic := kadm.NewClient(client), schemas.DefaultPrefix+f.topic
	ends, err := admin.ListEndOffsets(bounded, topic)
	if err == nil {
		_, err = admin.DeleteRecords(bounded, ends.Offsets())
	}
	w.history.note("world", "has trimmed %s: %v", topic, err)
}

// read has a client read.
func (w *world) read(plan *readPlan) {
	o := &w.plan.Ops[plan.op]
	name := fmt.Sprintf("client%d", plan.client)
	_, ready := w.parts[name].current()
	if v, _ := ready.(*voice); v != nil {
		after := ""
		if plan.after {
			after = v.browser.last(o.org, o.id)
		}
		w.look(name, v, plan, o.org, o.id, after)
	}
}

// revive starts a process again.
func (w *world) revive(ctx context.Context, p *part, done <-chan struct{}) {
	if p.alone && done != nil {
		go func() {
			select {
			case <-done:
				p.up(ctx)
			case <-ctx.Done():
			}
		}()
		return
	}
	p.up(ctx)
}

// calm ends all faults.
func (w *world) calm(ctx context.Context) {
	// sleep: virtual time, for what is due at this very moment
	time.Sleep(10 * time.Millisecond)
	w.history.note("world", "the faults are over")
	w.quiet.Store(true)
	for _, name := range w.names {
		p := w.parts[name]
		if isRival(name) {
			p.crash(false)
			continue
		}
		l, ready := p.current()
		if l != nil {
			l.host.disarm()
			l.host.mend()
			l.host.release()
		}
		if n, ok := ready.(*node); ok && stopped(n.projector) {
			// A partition that was told that its offset does not exist stops until somebody has looked.
			w.history.note("operator", "starts %s again, which has stopped a partition", name)
			done := p.down()
			w.revive(ctx, p, done)
			continue
		}
		p.up(ctx)
	}
}

// stopped says whether a partition is not projected any more because the broker did not know its offset.
func stopped(p *projector.Projector) bool {
	for _, part := range p.Status().Partitions {
		if errors.Is(part.Stopped, kerr.OffsetOutOfRange) {
			return true
		}
	}
	return false
}

// request makes the request of an operation.
func (w *world) request(o *opPlan, other bool) *operation.Request {
	q := &operation.Request{
		ID: operation.ID(o.id), Organization: o.org, Type: o.kind, DependencyToken: o.token, ExplicitKey: o.key,
		OnUpstreamFailure: o.upstream, Priority: o.priority, TimeLimit: o.limit, Retry: o.retry, Data: []byte(`{"n":1}`),
	}
	if o.postpone > 0 {
		q.PostponeUntil = operation.TimeOf(w.history.began.Add(o.postpone))
	}
	if other {
		q.Data = []byte(`{"n":2}`)
	}
	return q
}

// command has a client give a command.
func (w *world) command(c commandPlan) {
	o := &w.plan.Ops[c.op]
	name := fmt.Sprintf("client%d", c.client)
	_, ready := w.parts[name].current()
	v, _ := ready.(*voice)
	if v == nil {
		w.history.note(name, "is down, and does not give %s %s/%s", c.kind, o.org, o.id)
		return
	}
	cmd := &operation.Command{Kind: c.kind, Org: o.org, ID: operation.ID(o.id)}
	if c.kind == operation.Submit {
		cmd.Request = w.request(o, c.other)
	} else {
		cmd.CommandID, cmd.By = c.id, operation.By{Who: name, Reason: "chance"}
	}
	if c.kind == operation.Postpone {
		cmd.Until = operation.TimeOf(w.parts[name].clock.now().Add(c.until))
	}
	if c.kind == operation.Retry && c.corrects {
		cmd.Data = []byte(fmt.Sprintf(`{"n":%d}`, 3+c.client))
	}
	w.give(name, v, c, o, cmd)
}

// give sends a command and notes what is answered.
func (w *world) give(name string, v *voice, c commandPlan, o *opPlan, cmd *operation.Command) {
	k := &call{plan: c, op: o, who: name, began: w.history.now(), sent: cmd}
	how := "gives"
	switch {
	case c.garbage:
		how = "garbles"
	case c.foreign:
		how = "puts astray"
	case c.plain:
		how = "puts"
	case c.asks():
		how = fmt.Sprintf("asks projector%d to", c.node)
	}
	w.history.note(name, "%s %s %s/%s id %q%s", how, cmd.Kind, cmd.Org, cmd.ID, cmd.CommandID, otherBody(c.other))
	w.calling.Go(func() {
		ctx, cancel := context.WithTimeout(v.ctx, c.timeout)
		defer cancel()
		switch {
		case c.foreign:
			k.err = w.stray(ctx, v, c, o, cmd)
			k.acked = k.err == nil
		case c.plain:
			k.err = w.put(ctx, v, c, o, cmd)
			k.acked = k.err == nil
		case c.asks():
			w.ask(ctx, v, k)
		default:
			k.answer, k.err = v.answers.Do(ctx, cmd, o.target())
		}
		w.history.mu.Lock()
		k.ended = w.history.now()
		w.history.calls = append(w.history.calls, k)
		w.history.mu.Unlock()
		switch {
		case k.err != nil:
			w.history.note(name, "hears of %s %s/%s: %s", cmd.Kind, cmd.Org, cmd.ID, strings.ReplaceAll(k.err.Error(), "\n", " "))
		case k.acked:
			w.history.note(name, "hears of %s %s/%s: it is safe", cmd.Kind, cmd.Org, cmd.ID)
		default:
			w.history.note(name, "hears of %s %s/%s: %d-%d %s %s", cmd.Kind, cmd.Org, cmd.ID, k.answer.Partition, k.answer.Place, k.answer.Event, codeOf(k.answer.Rejection))
			if c.reads && v.browser != nil {
				kind := readOne
				if c.wait > 0 {
					kind = readHistory
				}
				w.look(name, v, &readPlan{node: c.reader, kind: kind}, o.org, o.id, k.answer.Position().String())
			}
		}
	})
}

func otherBody(other bool) string {
	if other {
		return ", another body"
	}
	return ""
}

func codeOf(r *operation.Rejection) string {
	if r == nil {
		return ""
	}
	return string(r.Code)
}

// stray puts a command on a partition where it does not belong, or something that is none.
func (w *world) stray(ctx context.Context, v *voice, c commandPlan, o *opPlan, cmd *operation.Command) error {
	rec := schemas.EncodeCommand(w.topics, cmd, []byte(o.target()))
	rec.Partition = (schemas.PartitionFor([]byte(o.target()), w.plan.Partitions) + 1) % w.plan.Partitions
	if c.garbage {
		rec.Value = []byte(`{"id":`)
	}
	return put(ctx, v.raw, rec)
}

// put produces a record and waits for what becomes of it until ctx ends. The record itself has no context: when one has ended whose
// record may be on the log, and the producer needs a new id, franz-go asks for the id again and again without a pause, and in a
// bubble no time passes while anybody is busy.
func put(ctx context.Context, client *kgo.Client, rec *kgo.Record) error {
	done := make(chan error, 1)
	client.Produce(context.Background(), rec, func(_ *kgo.Record, err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// retryData is what a retry by hand corrects, nil for nothing.
func retryData(cmd *operation.Command) any {
	if cmd.Data == nil {
		return nil
	}
	return json.RawMessage(cmd.Data)
}

// put gives a command through package producers.
func (w *world) put(ctx context.Context, v *voice, c commandPlan, o *opPlan, cmd *operation.Command) error {
	t := producers.Target{Organization: o.org, ID: o.id, DependencyToken: o.token, PartitionKey: o.key}
	by := producers.By{Who: cmd.By.Who, Reason: cmd.By.Reason, ID: cmd.CommandID}
	switch cmd.Kind {
	case operation.Submit:
		q := cmd.Request
		return v.plain.Request(ctx, &producers.Request{
			ID: o.id, Organization: o.org, Type: q.Type, DependencyToken: o.token, PartitionKey: o.key, OnUpstreamFailure: q.OnUpstreamFailure.String(),
			Priority: &q.Priority, PostponeUntil: q.PostponeUntil.Go(), TimeLimit: q.TimeLimit, Retry: q.Retry, Data: json.RawMessage(q.Data),
		})
	case operation.Cancel:
		return v.plain.Cancel(ctx, t, by)
	case operation.Pause:
		return v.plain.Pause(ctx, t, by)
	case operation.Resume:
		return v.plain.Resume(ctx, t, by)
	case operation.Postpone:
		return v.plain.Postpone(ctx, t, cmd.Until.Go(), by)
	case operation.Retry:
		return v.plain.Retry(ctx, t, retryData(cmd), by)
	default:
		return v.plain.Delete(ctx, t, by)
	}
}
