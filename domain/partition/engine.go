package partition

import (
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
)

// The input topics, by their short names. A position is kept for each.
const (
	Requests = "requests"
	Reports  = "reports"
	Signals  = "signals"
)

// Positions are the next offsets to read of the input topics.
type Positions struct{ Requests, Reports, Signals int64 }

func (p *Positions) of(topic string) *int64 {
	switch topic {
	case Requests:
		return &p.Requests
	case Reports:
		return &p.Reports
	case Signals:
		return &p.Signals
	}
	return nil
}

// Config of an [Engine].
type Config struct {
	Partitions  int                          // of the journal, among which sessions share their room; default 12
	KnownMax    int                          // ids of ended operations and commands that are remembered; default 262144
	FailedMax   int                          // failed operations that can still be retried by hand; default 8192
	FailedBytes int                          // of their checkpoints and failures; default 64 MiB
	LiveMax     int                          // operations that have not ended; more are refused; default 1 000 000
	LiveBytes   int                          // of their requests, checkpoints and failures, above which more operations are refused; default 1 GiB
	Lease       time.Duration                // of sessions that were not heard of since the engine was made; default 15 s
	ResendAfter time.Duration                // an attempt of which nothing is heard for so long is offered again; default 5 s
	Weight      func(org string) int         // turns of an organization; default 1
	Policy      func(t string) *retry.Policy // of a type; default retry.Default
}

func (c Config) withDefaults() Config {
	if c.Partitions == 0 {
		c.Partitions = 12
	}
	if c.KnownMax == 0 {
		c.KnownMax = 1 << 18
	}
	if c.FailedMax == 0 {
		c.FailedMax = 8192
	}
	if c.FailedBytes == 0 {
		c.FailedBytes = 64 << 20
	}
	if c.LiveMax == 0 {
		c.LiveMax = 1_000_000
	}
	if c.LiveBytes == 0 {
		c.LiveBytes = 1 << 30
	}
	if c.Lease == 0 {
		c.Lease = 15 * time.Second
	}
	if c.ResendAfter == 0 {
		c.ResendAfter = 5 * time.Second
	}
	if c.Weight == nil {
		c.Weight = func(string) int { return 1 }
	}
	if c.Policy == nil {
		c.Policy = func(string) *retry.Policy { return &retry.Default }
	}
	return c
}

// Ref names an operation within a partition.
type Ref struct {
	Org string
	ID  operation.ID
}

// op is a live operation.
type op struct {
	state   operation.State
	chain   *chain
	queue   *readyQueue       // it was ready in last
	ready   *orgQueue         // of queue, while it is ready
	at      [heapPlaces]int32 // index in its heaps, from 1
	openAt  int32             // index in its session's open list, from 1
	changed int32             // index in Engine.changed, from 1
	bytes   int               // as counted in Engine.bytes
	saved   bool              // a checkpoint of this engine or of the one before holds it
	wait    operation.Wait    // as it stands in Engine.waits

	sentAt operation.Time // when its attempt was offered last
}

// Engine is one partition's scheduler. It is not safe for concurrent use.
type Engine struct {
	cfg Config

	// Functions of the journal.
	now    operation.Time // of the last event
	end    operation.Place
	pos    Positions
	ops    map[Ref]*op
	bytes  int // of ops, see weight
	known  window
	failed failedRing

	// Derived from those.
	chains map[chainKey]*chain
	queues map[string]*readyQueue
	served uint64        // of the queue that was served last, when it was: where a queue that was empty begins
	timers heap          // due times
	tied   map[Ref][]*op // those that are blocked by an operation which did not succeed
	waits  [operation.WaitServicePaused + 1]int

	// Of the sessions, from heartbeats.
	sessions map[operation.SessionID]*session
	roster   []*session
	serving  map[string]*servers // by type
	types    []string            // that have some, sorted
	heard    operation.Time      // heartbeats are known up to here
	ticked   operation.Time      // by the leases' clock; 0 when the wall clock is taken for it

	out      []operation.Event    // of the current batch
	of       []*operation.Request // of the operations that out is about
	took     []*operation.Request // the same of the last Take
	scratch  []operation.Event
	asked    []*readyQueue
	settling []*chain // chains that have to be looked at
	inSettle bool
	// replaying is set while events of the journal are applied: what follows from them stands there as well.
	replaying bool

	// Since the last checkpoint.
	changed  []*op
	gone     []Ref
	knownSeq uint64
}

// New makes the engine of a partition whose journal is empty.
func New(cfg Config) *Engine {
	cfg = cfg.withDefaults()
	return &Engine{
		cfg:      cfg,
		ops:      make(map[Ref]*op),
		known:    newWindow(cfg.KnownMax),
		failed:   newFailedRing(cfg.FailedMax, cfg.FailedBytes),
		chains:   make(map[chainKey]*chain),
		queues:   make(map[string]*readyQueue),
		timers:   heap{place: inTimers},
		tied:     make(map[Ref][]*op),
		serving:  make(map[string]*servers),
		sessions: make(map[operation.SessionID]*session),
	}
}

// End is the place of the next event.
func (e *Engine) End() operation.Place { return e.end }

// Now is the time of the last event; times in a partition never go back.
func (e *Engine) Now() operation.Time { return e.now }

// Positions returns the next offsets to read.
func (e *Engine) Positions() Positions { return e.pos }

// Live is the number of operations that have not ended.
func (e *Engine) Live() int { return len(e.ops) }

// Backlog is the number of ready operations that a living session serves, and of the bytes of their requests: work that will be
// done, only not yet.
func (e *Engine) Backlog() (operations, bytes int) {
	for _, t := range e.types {
		if q := e.queues[t]; q != nil {
			operations += q.size
			bytes += q.bytes
		}
	}
	return operations, bytes
}

// weight is the part of what a live operation takes of memory that its callers and handlers decide.
func weight(s *operation.State) int {
	n := len(s.Carry) + len(s.Progress) + len(s.Result)
	if s.Request != nil {
		n += len(s.Request.Raw)
	}
	if s.Failure != nil {
		n += len(s.Failure.Message) + len(s.Failure.FriendlyMessage)
	}
	return n
}

// Waiting is the number of live operations that do not run for this reason; those that are ready wait for resources.
func (e *Engine) Waiting(why operation.Wait) int { return e.waits[why] }

// recount moves o to the reason for which it waits now. What stands at WaitNone means nothing.
func (e *Engine) recount(o *op) {
	why := o.state.Wait()
	if why != o.wait {
		e.waits[o.wait]--
		e.waits[why]++
		o.wait = why
	}
}

// weigh counts o anew.
func (e *Engine) weigh(o *op) {
	n := weight(&o.state)
	e.bytes += n - o.bytes
	o.bytes = n
}

// State returns a live operation, or nil. It must not be changed, nor kept.
func (e *Engine) State(org string, id operation.ID) *operation.State {
	if o := e.ops[Ref{org, id}]; o != nil {
		return &o.state
	}
	return nil
}

// Take returns the events of the steps since the last call, in order. They are applied already. The slice is good until
// the next step.
func (e *Engine) Take() []operation.Event {
	out := e.out
	e.took = e.of
	if e.out, e.of = e.out[:0], e.of[:0]; cap(e.out) > keepMax {
		e.out, e.of = nil, nil
	}
	return out
}

// Of returns the request of the operation that the i-th event of the last [Engine.Take] is about, also when that operation has
// ended by now; nil where the engine does not know it. It is good as long as the events are.
func (e *Engine) Of(i int) *operation.Request { return e.took[i] }

// keepMax is the capacity above which an array for a batch is not kept for the next one.
const keepMax = 1 << 12

// Replay applies a valid event of the journal. After the last one, [Engine.Recovered] and [Engine.Settle] do what a crash
// has cut off.
func (e *Engine) Replay(ev *operation.Event, place operation.Place) {
	e.end, e.replaying = place, true
	e.apply(ev, nil)
	e.replaying = false
}

// Skip moves the end over void records.
func (e *Engine) Skip(next operation.Place) { e.end = max(e.end, next) }

// Read says whether the input was read before: an event names it, or one after it, as its cause.
func (e *Engine) Read(c operation.Cause) bool {
	p := e.pos.of(c.Topic)
	return p != nil && c.Offset < *p
}

// emit applies events that were decided and puts them into the batch. They are o's, if that is not nil.
func (e *Engine) emit(events []operation.Event, o *op) {
	for i := range events {
		e.of = append(e.of, requestOf(&events[i], o)) // before the event: it may be the operation's last
		e.apply(&events[i], o)
	}
	e.out = append(e.out, events...)
}

// requestOf is the request of the operation that ev is about, which is o unless that is nil.
func requestOf(ev *operation.Event, o *op) *operation.Request {
	if ev.Request != nil || o == nil {
		return ev.Request
	}
	return o.state.Request
}

// one puts an event into the batch that changes no operation. It is o's, if that is not nil, and else follows from asked, if
// that is not nil.
func (e *Engine) one(ev operation.Event, o *op, asked *operation.Request) {
	e.scratch = append(e.scratch[:0], ev)
	e.emit(e.scratch, o)
	if last := len(e.of) - 1; e.of[last] == nil {
		e.of[last] = asked
	}
}

// time is now for events; in a partition it never goes back.
func (e *Engine) time(now operation.Time) operation.Time { return max(e.now, now) }

// Open begins the history of one writer.
func (e *Engine) Open(owner string, now operation.Time) {
	e.one(operation.Event{Kind: operation.Opened, At: e.time(now), Owner: owner}, nil, nil)
}

// Forward says that a request was put on this partition by mistake and is sent on to another one.
func (e *Engine) Forward(to int32, body []byte, cause operation.Cause, now operation.Time) {
	if e.Read(cause) {
		return
	}
	e.one(operation.Event{Kind: operation.Forwarded, At: e.time(now), Cause: cause, To: to, Body: body}, nil, nil)
}

// Refuse journals that an input was refused at the border.
func (e *Engine) Refuse(c *operation.Command, code operation.RejectionCode, reason string, now operation.Time) {
	if e.Read(c.Cause) {
		return
	}
	e.refuse(c, &operation.Rejection{Code: code, Reason: reason}, e.time(now))
}

func (e *Engine) refuse(c *operation.Command, r *operation.Rejection, now operation.Time) {
	e.one(operation.Event{
		Kind: operation.Rejected, Org: c.Org, ID: c.ID, At: now, Cause: c.Cause, CommandID: c.CommandID, By: c.By,
		Attempt: c.Attempt, Session: c.Session, Command: c.Kind, Code: r.Code, Reason: r.Reason,
	}, e.ops[Ref{c.Org, c.ID}], c.Request)
}

// Do decides a command and applies what follows. It returns the place of a journal event when it first needs the request
// that stands there, as Request of the same command; then nothing of it has happened yet, and it must be given again before
// the next Settle.
func (e *Engine) Do(c *operation.Command, now operation.Time) (need operation.Place, wants bool) {
	if e.Read(c.Cause) {
		return 0, false
	}
	now = e.time(now)
	e.settleChains(operation.Cause{Topic: "clock"}, now) // what a crash has cut off comes before what came after it
	ref := Ref{c.Org, c.ID}
	o := e.ops[ref]
	// A submit is known by its operation's id: two requests that came in one event of their sender are still two.
	if c.CommandID != "" && c.Kind != operation.Submit {
		if k := e.known.find(hashID(kindCommand, c.Org, c.CommandID)); k != nil {
			if k.Body != 0 && k.Body != commandHash(c.Kind, c.ID) { // 0: remembered by a version that did not tell them apart
				e.refuse(c, &operation.Rejection{Code: operation.KeyReused, Reason: operation.Reasons[operation.KeyReused]}, now)
			} else {
				e.unchanged(c, e.status(ref, o), now)
			}
			return 0, false
		}
	}
	switch {
	case c.Kind == operation.Submit:
		e.submit(c, o, now)
	case o != nil:
		e.onLive(c, o, now)
	default:
		return e.onEnded(c, ref, now)
	}
	return 0, false
}

func (e *Engine) status(ref Ref, o *op) operation.Status {
	if o != nil {
		return o.state.Status
	}
	if k := e.known.find(hashID(kindOperation, ref.Org, string(ref.ID))); k != nil {
		return k.Status
	}
	return operation.StatusAbsent
}

// unchanged answers somebody who waits; workers do not.
func (e *Engine) unchanged(c *operation.Command, s operation.Status, now operation.Time) {
	if c.Kind.Request() && c.Cause.Topic != "" {
		e.one(operation.Event{
			Kind: operation.Unchanged, Org: c.Org, ID: c.ID, At: now, Cause: c.Cause, CommandID: c.CommandID,
			By: c.By, Command: c.Kind, Status: s,
		}, e.ops[Ref{c.Org, c.ID}], c.Request)
	}
}

func (e *Engine) submit(c *operation.Command, o *op, now operation.Time) {
	if o == nil {
		if k := e.known.find(hashID(kindOperation, c.Org, string(c.ID))); k != nil && !noDedupe {
			switch {
			case k.Status == operation.StatusDeleted && k.Body == 0: // deleted when its request was forgotten already
				e.refuse(c, &operation.Rejection{Code: operation.WasDeleted, Reason: operation.Reasons[operation.WasDeleted]}, now)
			case k.Body != bodyHash(c.Request.Raw):
				e.refuse(c, &operation.Rejection{Code: operation.KeyReused, Reason: operation.Reasons[operation.KeyReused]}, now)
			default:
				e.unchanged(c, k.Status, now)
			}
			return
		}
		if len(e.ops) >= e.cfg.LiveMax || e.bytes+len(c.Request.Raw) > e.cfg.LiveBytes {
			e.refuse(c, &operation.Rejection{Code: operation.Overloaded, Reason: operation.Reasons[operation.Overloaded]}, now)
			return
		}
		c.Upstream = e.tail(c.Org, c.Request.DependencyToken)
		e.decide(c, nil, &absent, now)
		return
	}
	e.decide(c, o, &o.state, now)
}

// absent is what an operation is before it is requested; nobody changes it.
var absent operation.State

func (e *Engine) onLive(c *operation.Command, o *op, now operation.Time) {
	switch c.Kind {
	case operation.Fail:
		c.Policy = e.policy(o)
	case operation.Resume:
		c.Upstream = o.ahead()
	}
	if c.Kind.Report() && o.state.Open(c.Attempt, c.Session) {
		o.sentAt = e.tick(now)
		if s := e.sessions[c.Session]; s != nil && c.Kind == operation.Return {
			s.overtaken()
		}
	}
	e.decide(c, o, &o.state, now)
}

// decide asks the operation that is s, and o's if it is live, and applies the answer.
func (e *Engine) decide(c *operation.Command, o *op, s *operation.State, now operation.Time) {
	events, rejection := operation.Decide(e.scratch[:0], s, c, now)
	e.scratch = events
	switch {
	case rejection != nil:
		e.refuse(c, rejection, now)
	case len(events) == 0:
		e.unchanged(c, s.Status, now)
	default:
		e.emit(events, o)
		e.settleChains(c.Cause, now)
	}
}

// onEnded decides a command for an operation that is not live.
func (e *Engine) onEnded(c *operation.Command, ref Ref, now operation.Time) (operation.Place, bool) {
	k := e.known.find(hashID(kindOperation, ref.Org, string(ref.ID)))
	failed := e.failed.find(ref)
	if failed != nil && c.Kind == operation.Retry {
		if c.Request == nil {
			return failed.InputPlace, true
		}
		c.Upstream = e.rejoin(c.Org, c.Request.DependencyToken, failed.RequestedPlace)
		e.decide(c, nil, failed, now)
		return 0, false
	}
	s := operation.State{Org: ref.Org, ID: ref.ID}
	switch {
	case failed != nil: // the window may be shorter than the ring
		s.Status = operation.StatusFailed
		s.Request = &operation.Request{}
	case k != nil:
		s.Status = k.Status
		s.Request = &operation.Request{} // what it was does not matter to the answers of an ended operation
	case c.Kind == operation.Delete:
		// It ended longer ago than this partition remembers, or never was: to delete it is right in both cases, and the
		// journal tells the tables.
		s.Status = operation.StatusSucceeded
	}
	switch {
	case c.Kind.Report() && s.Status != operation.StatusAbsent:
		return 0, false // an echo of an attempt that ended with its operation
	case c.Kind == operation.Retry && s.Status == operation.StatusFailed:
		e.refuse(c, &operation.Rejection{Code: operation.Forgotten, Reason: operation.Reasons[operation.Forgotten]}, now)
		return 0, false
	}
	e.decide(c, nil, &s, now)
	return 0, false
}

// apply is the only way in which an event changes the engine, live and in replay. o is its operation, if the caller knows.
func (e *Engine) apply(ev *operation.Event, o *op) {
	place := e.end
	e.end++
	e.now = max(e.now, ev.At)
	if p := e.pos.of(ev.Cause.Topic); p != nil && ev.Kind != operation.Started {
		*p = max(*p, ev.Cause.Offset+1)
	}
	// A refused command changed nothing. Its sender may give it again under the same id when what it was refused for has
	// passed or was mended, and must not be told then that it is done.
	if ev.CommandID != "" && ev.Kind != operation.Rejected {
		// A submit is known by its operation's id; another entry would only shorten what is remembered.
		if kind := asked(ev); kind != operation.Submit {
			e.known.add(Known{Hash: hashID(kindCommand, ev.Org, ev.CommandID), Body: commandHash(kind, ev.ID)})
		}
	}
	if !ev.Kind.Changes() {
		return
	}
	ref := Ref{ev.Org, ev.ID}
	if o == nil {
		o = e.ops[ref]
	}
	switch ev.Kind {
	case operation.Requested, operation.Retried:
		if o != nil {
			return
		}
		o = &op{}
		if f := e.untry(ref); ev.Kind == operation.Retried {
			if f != nil {
				o.state = f.state
			} else { // the writer remembered more than this engine does
				o.state = operation.State{Org: ev.Org, ID: ev.ID, RequestedPlace: place, CreatedAt: ev.At}
			}
		}
		e.ops[ref] = o
	case operation.Deleted:
		h := hashID(kindOperation, ref.Org, string(ref.ID))
		k := Known{Hash: h, Status: operation.StatusDeleted}
		if old := e.known.find(h); old != nil {
			k.Body = old.Body
		}
		e.known.add(k)
		e.untry(ref)
		e.untie(ref)
		return
	}
	if o == nil {
		return // of an operation that this engine does not know: the journal was cut, or the event is not one of ours
	}
	before, held := o.state.Status, o.state.Session
	up, blocked := o.state.BlockedBy, o.state.Blocked
	o.state.Apply(ev, place)
	e.weigh(o)
	if o.changed == 0 {
		e.changed = append(e.changed, o)
		o.changed = int32(len(e.changed))
	}
	e.blocked(o, up, blocked)
	e.index(o, ev, before, held)
}

// asked returns the command that led to an event with a CommandID.
func asked(ev *operation.Event) operation.CommandKind {
	switch ev.Kind {
	case operation.Unchanged:
		return ev.Command
	case operation.CancelRequested, operation.Canceled:
		return operation.Cancel
	case operation.PauseRequested:
		if ev.Until != 0 {
			return operation.Postpone
		}
		return operation.Pause
	case operation.Paused:
		return operation.Pause
	case operation.Resumed:
		return operation.Resume
	case operation.Postponed:
		return operation.Postpone
	case operation.Retried:
		return operation.Retry
	case operation.Deleted:
		return operation.Delete
	}
	return operation.Submit
}

// index keeps queues, timers, chains and sessions in step with a change of o.
func (e *Engine) index(o *op, ev *operation.Event, before operation.Status, held operation.SessionID) {
	s := &o.state
	if was, is := before.Locked(), s.Status.Locked(); was != is || was && held != s.Session {
		if was {
			e.closeAttempt(o, held, ev.Kind)
		}
		if is {
			e.openAttempt(o, ev.At)
		}
	}
	switch ready := s.Status == operation.StatusReady; {
	case ready && o.ready == nil:
		e.ready(o)
	case !ready && o.ready != nil:
		oq := o.ready
		e.unready(o)
		o.queue.tidy(priority(o), oq)
	}
	e.clock(o)
	e.recount(o)
	e.link(o)
	if s.Status.Terminal() {
		e.forget(o)
	}
}

// ready puts o into the queue of its type. A type that was idle is served as if it had kept up with the others, and not
// until it has caught up with them.
func (e *Engine) ready(o *op) {
	t := o.state.Request.Type
	q := e.queues[t]
	if q == nil {
		q = &readyQueue{name: t}
		e.queues[t] = q
	}
	if q.size == 0 {
		q.served = max(q.served, e.served)
	}
	q.push(o, e.cfg.Weight)
}

// queuesKept is the number of types above which the queue of one that has nothing is dropped: callers choose their names.
const queuesKept = 256

func (e *Engine) unready(o *op) {
	q := o.queue
	q.drop(o)
	if q.size == 0 && len(e.queues) > queuesKept {
		delete(e.queues, q.name)
	}
}

// clock keeps the due time of o.
func (e *Engine) clock(o *op) {
	s := &o.state
	if s.Status == operation.StatusWaiting && s.Until != 0 && s.Holds&(operation.HoldPostponed|operation.HoldRetry) != 0 {
		e.timers.set(o, int64(s.Until))
	} else {
		e.timers.remove(o)
	}
}

// forget drops an operation that has ended, but for its entry in the window.
func (e *Engine) forget(o *op) {
	s := &o.state
	ref := Ref{s.Org, s.ID}
	delete(e.ops, ref)
	e.bytes -= o.bytes
	e.known.add(Known{Hash: hashID(kindOperation, s.Org, string(s.ID)), Body: bodyHash(s.Request.Raw), Status: s.Status})
	if s.Status == operation.StatusFailed {
		for oldest := e.failed.full(s); oldest != nil; oldest = e.failed.full(s) {
			e.untry(oldest.ref)
		}
		e.failed.add(ref, s)
	}
	if o.saved {
		e.gone = append(e.gone, ref)
	}
	e.unchange(o)
}

// unchange takes o, which has ended, off the list of what the next checkpoint has to hold.
func (e *Engine) unchange(o *op) {
	last := len(e.changed) - 1
	moved := e.changed[last]
	e.changed[o.changed-1] = moved
	moved.changed = o.changed
	e.changed[last] = nil
	e.changed = e.changed[:last]
	o.changed = 0
}

// untry takes a failed operation that cannot be retried any more out of the ring.
func (e *Engine) untry(ref Ref) *failedOp {
	f := e.failed.take(ref)
	if f != nil && f.saved {
		e.gone = append(e.gone, ref)
	}
	return f
}

// dueAtOnce is how many operations become due in one Settle. All that were postponed until midnight are due then: taken at once
// they would keep reports and requests waiting, and put more under way than a writer may have.
const dueAtOnce = 4096

// Settle does what follows from the state and the time alone: due operations, lost leases, chains, and the dispatch of
// what is ready to sessions that have room. cause is the last input, or the clock.
func (e *Engine) Settle(cause operation.Cause, now operation.Time) {
	now = e.time(now)
	e.expire(now) // before the timers: a lost attempt may be due again at once
	for n := 0; n < dueAtOnce && len(e.timers.entries) > 0 && e.timers.entries[0].key <= int64(now); n++ {
		o := e.timers.entries[0].o
		e.decide(&operation.Command{Kind: operation.Due, Org: o.state.Org, ID: o.state.ID, Cause: operation.Cause{Topic: "clock"}}, o, &o.state, now)
	}
	e.settleChains(cause, now)
	e.dispatch(cause, now)
}

// NextWake is when [Engine.Settle] has something to do next although nothing is heard, or 0: the earlier of [Engine.NextDue]
// and [Engine.NextLapse], for whoever has one clock for both. After a Settle it lies ahead, but for a lease whose end is to be
// confirmed, see [Engine.Silent], and where more are due than one Settle takes.
func (e *Engine) NextWake() operation.Time {
	due, lapse := e.NextDue(), e.NextLapse()
	if due == 0 || lapse != 0 && lapse < due {
		return lapse
	}
	return due
}

// NextDue is when the next operation is due, by the clock whose time events bear, or 0.
func (e *Engine) NextDue() operation.Time {
	if len(e.timers.entries) == 0 {
		return 0
	}
	return operation.Time(e.timers.entries[0].key)
}

// NextLapse is when the next lease runs out unless more is heard of its session, by the leases' clock, or 0.
func (e *Engine) NextLapse() operation.Time {
	var at operation.Time
	for _, s := range e.roster {
		if len(s.open) > 0 || s.announced {
			if d := s.deadline; at == 0 || d < at {
				at = d
			}
		}
	}
	return at
}
