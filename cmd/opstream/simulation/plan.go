package simulation

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/domain/retry"
)

// Plan is what a seed decides beforehand: everything but the order in which goroutines run.
type Plan struct {
	Seed       uint64
	Partitions int32
	Inboxes    int32
	Schedulers int
	Workers    int
	Projectors int
	Clients    int
	Twin       bool // another projector writes to the tables of the first

	Faulty time.Duration // length of the phase with commands and faults

	Lease, TimeLimit, CheckpointEvery time.Duration
	WorkerLease                       time.Duration // may be longer than the schedulers'
	CheckpointEvents                  int
	Slots, FailedMax                  int
	InFlightMax, QueueMax             int

	Ops      []opPlan
	Commands []commandPlan
	Reads    []readPlan
	Faults   []faultPlan
	Skews    map[string]time.Duration // of the hosts' clocks, by part
}

// opPlan is an operation that clients ask for.
type opPlan struct {
	org, id, token, key string
	kind                string
	priority            int8
	upstream            operation.UpstreamPolicy
	postpone            time.Duration // until this time of the plan; 0: not
	limit               time.Duration
	retry               *retry.Policy
}

// target is the operation's partition key.
func (o *opPlan) target() string {
	return operation.Key(o.org, o.key, o.token, operation.ID(o.id))
}

// commandPlan is one call of one client.
type commandPlan struct {
	at       time.Duration
	client   int
	plain    bool // through package producers, without waiting for the answer
	foreign  bool // as a producer with another partitioner puts it
	garbage  bool // and it cannot be read
	kind     operation.CommandKind
	op       int
	other    bool // another body under the same id
	id       string
	until    time.Duration
	timeout  time.Duration
	corrects bool // a retry with other data

	// Through the API.
	http   bool
	node   int
	keyed  bool          // says what decides the partition; else the tables have to know
	wait   time.Duration // for the effect
	reads  bool          // what it wrote, when it has heard
	reader int           // node that it reads from
}

// asks says whether the command goes through the API.
func (c *commandPlan) asks() bool { return c.http && !c.plain && !c.foreign }

type faultKind uint8

const (
	crash      faultKind = iota // the process falls; what it had sent is lost, or late
	stop                        // the process ends cleanly
	cutOff                      // the network is cut
	holdUp                      // the network keeps everything, for longer than a session may be silent
	onRequest                   // something happens to single requests of a host
	atBroker                    // the broker answers with errors
	clockJump                   // the wall clock of a host moves
	rival                       // another scheduler, of another group, owns all partitions as well
	rehash                      // group coordinators move
	trip                        // the process falls at one of its next requests, between two steps
	echo                        // ends of attempts are reported again, and differently
	trim                        // the broker forgets what inboxes and sessions hold: offsets are out of range
	faultKinds = iota
)

type faultPlan struct {
	at    time.Duration
	kind  faultKind
	part  string
	lasts time.Duration
	late  bool
	ghost time.Duration // after the crash, until what is late arrives
	net   netFault
	times int
	err   *kerr.Error
	keys  []kmsg.Key
	topic string // short
	by    time.Duration
}

func (f *faultPlan) String() string {
	switch f.kind {
	case crash:
		if f.late {
			return fmt.Sprintf("%s crashes, is back after %s; what it had sent arrives after %s", f.part, f.lasts, f.ghost)
		}
		return fmt.Sprintf("%s crashes, is back after %s; what it had sent is lost", f.part, f.lasts)
	case stop:
		return fmt.Sprintf("%s stops cleanly, is back after %s", f.part, f.lasts)
	case cutOff:
		return fmt.Sprintf("%s is cut off for %s", f.part, f.lasts)
	case holdUp:
		return fmt.Sprintf("%s is held up for %s", f.part, f.lasts)
	case onRequest:
		how := [...]string{"loses the answers to", "loses", "is slow with"}[f.net.how]
		return fmt.Sprintf("%s %s the next %d %s requests", f.part, how, f.times, nameOf(f.net.key))
	case atBroker:
		return fmt.Sprintf("the broker answers %d requests %v of %q with %s", f.times, f.keys, f.topic, f.err.Message)
	case clockJump:
		return fmt.Sprintf("the clock of %s jumps by %s", f.part, f.by)
	case rival:
		text := fmt.Sprintf("%s owns all partitions as well, for %s", f.part, f.lasts)
		if f.late {
			text += fmt.Sprintf(", then hangs for %s, and what it had in hand is sent after that", f.ghost)
		}
		return text
	case trip:
		when := "before"
		if f.net.how == fallAfter {
			when = fmt.Sprintf("after (which arrives %s later)", f.ghost)
		}
		return fmt.Sprintf("%s will fall %s its %d. %s request, and be back after %s", f.part, when, f.net.skip+1, kmsg.NameForKey(f.net.key), f.lasts)
	case echo:
		return fmt.Sprintf("%d ends of attempts will be reported once more, and differently", f.times)
	case trim:
		return fmt.Sprintf("the broker forgets all %s", f.topic)
	case rehash:
		return "the coordinators of groups move"
	}
	return "?"
}

func chance(seed uint64, stream string) *rand.Rand {
	h := uint64(14695981039346656037)
	for i := range len(stream) {
		h = (h ^ uint64(stream[i])) * 1099511628211
	}
	return rand.New(rand.NewPCG(seed, h))
}

func between(r *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(r.Int64N(int64(most-least)+1))
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// NewPlan makes the plan of a seed. Without clocks all machines know the right time.
func NewPlan(seed uint64, clocks bool) *Plan {
	r := chance(seed, "shape")
	p := &Plan{
		Seed: seed, Partitions: int32(2 + r.IntN(3)), Inboxes: int32(1 + r.IntN(4)),
		Schedulers: 2 + r.IntN(2), Workers: 2 + r.IntN(2), Projectors: 1 + r.IntN(2), Clients: 1 + r.IntN(2),
		Faulty: between(r, 15*time.Second, 45*time.Second),
		Lease:  pick(r, 2*time.Second, 3*time.Second, 5*time.Second), TimeLimit: between(r, 2*time.Second, 6*time.Second),
		CheckpointEvery: pick(r, 200*time.Millisecond, time.Second, 5*time.Second), CheckpointEvents: pick(r, 10, 50, 1000),
		Slots: 1 + r.IntN(6), FailedMax: pick(r, 3, 100), InFlightMax: pick(r, 8, 64, 16384),
		Skews: map[string]time.Duration{},
	}
	p.QueueMax = pick(chance(seed, "queue"), 2, 16, 32768)
	p.Twin = chance(seed, "twin").IntN(5) == 0
	p.operations()
	p.commands()
	p.reads()
	p.faults()
	p.WorkerLease = p.Lease
	// Whoever begins when the broker has forgotten all heartbeats cannot know of longer leases than his own.
	if !slices.ContainsFunc(p.Faults, func(f faultPlan) bool { return f.kind == trim && f.topic == "sessions" }) {
		p.WorkerLease = pick(chance(seed, "lease"), p.Lease, p.Lease, 2*p.Lease, 4*p.Lease)
	}
	if !clocks {
		clear(p.Skews)
		p.Faults = slices.DeleteFunc(p.Faults, func(f faultPlan) bool { return f.kind == clockJump })
	}
	return p
}

// types of operations; the first ones are served by all workers, the last one by the first worker only.
var types = []string{"workflow", "import", "bulk-delete", "rare"}

func (p *Plan) operations() {
	r := chance(p.Seed, "operations")
	n := 20 + r.IntN(80)
	orgs, tokens := 1+r.IntN(3), 1+r.IntN(5)
	for i := range n {
		o := opPlan{org: fmt.Sprintf("org%d", r.IntN(orgs)), id: fmt.Sprintf("op%d", i), kind: types[min(r.IntN(9), len(types)*2-1)/2], priority: operation.PriorityDefault}
		if r.IntN(3) > 0 {
			o.token = fmt.Sprintf("t%d", r.IntN(tokens))
		} else if r.IntN(4) == 0 {
			o.key = fmt.Sprintf("key%d", r.IntN(3))
		}
		if r.IntN(3) == 0 {
			o.priority = int8(r.IntN(operation.PriorityMax + 1))
		}
		o.upstream = pick(r, operation.UpstreamRelease, operation.UpstreamRelease, operation.UpstreamBlock, operation.UpstreamCancel)
		if r.IntN(6) == 0 {
			o.postpone = between(r, 100*time.Millisecond, 10*time.Second)
		}
		if r.IntN(4) == 0 {
			o.limit = between(r, 200*time.Millisecond, 3*time.Second)
		}
		if r.IntN(2) == 0 {
			o.retry = &retry.Policy{MaxAttempts: 1 + r.IntN(8), Initial: between(r, 0, time.Second), Max: 3 * time.Second, Multiplier: 1.5, Jitter: 0.5}
		}
		p.Ops = append(p.Ops, o)
	}
}

func (p *Plan) commands() {
	r := chance(p.Seed, "commands")
	asked := make([]time.Duration, len(p.Ops))
	add := func(c commandPlan) {
		c.client = r.IntN(p.Clients)
		c.plain = r.IntN(4) == 0
		c.foreign = r.IntN(15) == 0
		c.garbage = c.foreign && r.IntN(5) == 0
		c.timeout = between(r, time.Second, 20*time.Second)
		c.id = fmt.Sprintf("cmd%d", len(p.Commands))
		if r.IntN(10) == 0 && len(p.Commands) > 0 && c.kind != operation.Submit {
			c.id = p.Commands[r.IntN(len(p.Commands))].id // another command has this id
		}
		p.Commands = append(p.Commands, c)
		if r.IntN(12) == 0 { // the same again, by whoever has not heard the answer
			c.at += between(r, 0, 3*time.Second)
			p.Commands = append(p.Commands, c)
		}
	}
	burst := time.Duration(0)
	for i := range p.Ops {
		at := between(r, 0, p.Faulty*9/10)
		if r.IntN(3) == 0 {
			at = burst // many at once
		} else {
			burst = at
		}
		asked[i] = at
		if p.Ops[i].postpone > 0 { // a time of the plan, so that the same request has the same body
			p.Ops[i].postpone += at
		}
		add(commandPlan{at: at, kind: operation.Submit, op: i})
		if r.IntN(10) == 0 {
			add(commandPlan{at: at + between(r, 0, 5*time.Second), kind: operation.Submit, op: i, other: r.IntN(2) == 0})
		}
	}
	for range len(p.Ops) * (1 + r.IntN(3)) / 2 {
		i := r.IntN(len(p.Ops))
		c := commandPlan{op: i, at: asked[i] + between(r, 0, pick(r, 500*time.Millisecond, 10*time.Second))}
		c.kind = pick(r, operation.Cancel, operation.Pause, operation.Pause, operation.Resume, operation.Resume, operation.Postpone, operation.Retry, operation.Retry, operation.Delete)
		c.until = between(r, 0, 8*time.Second)
		add(c)
	}
	sort.SliceStable(p.Commands, func(i, j int) bool { return p.Commands[i].at < p.Commands[j].at })
}

// reads plans who looks at what, and which commands go through the API.
func (p *Plan) reads() {
	r := chance(p.Seed, "reads")
	for i := range p.Commands {
		c := &p.Commands[i]
		c.http, c.node, c.reader = r.IntN(3) > 0, r.IntN(p.Projectors), r.IntN(p.Projectors)
		c.keyed, c.reads, c.corrects = r.IntN(2) == 0, r.IntN(2) == 0, r.IntN(2) == 0
		if r.IntN(4) == 0 {
			c.wait = between(r, 0, 8*time.Second)
		}
	}
	for range len(p.Ops) {
		i := r.IntN(len(p.Ops))
		read := readPlan{
			at: between(r, 0, p.Faulty), client: r.IntN(p.Clients), node: r.IntN(p.Projectors), kind: readKind(r.IntN(readKinds)), op: i,
			after: r.IntN(3) == 0, limit: 1 + r.IntN(20),
		}
		if r.IntN(4) == 0 {
			read.wait = between(r, 0, 8*time.Second)
		}
		for s := operation.StatusReady; s < operation.StatusDeleted; s++ {
			if r.IntN(3) == 0 {
				read.statuses = append(read.statuses, s)
			}
		}
		if len(read.statuses) == 0 {
			read.statuses = []operation.Status{operation.StatusSucceeded}
		}
		p.Reads = append(p.Reads, read)
	}
	sort.SliceStable(p.Reads, func(i, j int) bool { return p.Reads[i].at < p.Reads[j].at })
}

func (p *Plan) parts() []string {
	var names []string
	for i := range p.Schedulers {
		names = append(names, fmt.Sprintf("scheduler%d", i))
	}
	for i := range p.Workers {
		names = append(names, fmt.Sprintf("worker%d", i))
	}
	for i := range p.Projectors {
		names = append(names, fmt.Sprintf("projector%d", i))
	}
	for i := range p.Clients {
		names = append(names, fmt.Sprintf("client%d", i))
	}
	if p.Twin {
		names = append(names, "twin")
	}
	return names
}

// What stands in a request of HTTP where one of Kafka has its kind.
const (
	httpPost = int16(' ')<<8 | '/' // of "POST /"
	httpGet  = int16('/')<<8 | 'v' // of "GET /v"
)

func nameOf(key int16) string {
	switch key {
	case httpPost:
		return "POST"
	case httpGet:
		return "GET"
	}
	return kmsg.NameForKey(key)
}

var (
	producing = []kmsg.Key{kmsg.Produce}
	fetching  = []kmsg.Key{kmsg.Fetch}
)

func (p *Plan) faults() {
	r := chance(p.Seed, "faults")
	parts := p.parts()
	for _, name := range parts {
		if r.IntN(2) == 0 {
			p.Skews[name] = between(r, -10*time.Minute, 10*time.Minute)
		}
	}
	victim := func() string { // schedulers and workers more often than the others
		if r.IntN(3) > 0 {
			return parts[r.IntN(p.Schedulers+p.Workers)]
		}
		return parts[r.IntN(len(parts))]
	}
	// Some worlds have only a few kinds of faults: much that goes wrong needs quiet in between.
	var kinds []faultKind
	for k := range faultKind(faultKinds) {
		if r.IntN(2) == 0 {
			kinds = append(kinds, k)
		}
	}
	if len(kinds) == 0 {
		return
	}
	rivals := 0
	for range r.IntN(25) {
		f := faultPlan{at: between(r, 0, p.Faulty), kind: pick(r, kinds...), part: victim(), lasts: between(r, 50*time.Millisecond, pick(r, time.Second, 8*time.Second, 20*time.Second))}
		switch f.kind {
		case crash:
			f.late, f.ghost = r.IntN(2) == 0, between(r, 0, 20*time.Second)
		case holdUp:
			f.lasts = between(r, time.Second, 25*time.Second)
		case onRequest:
			f.net.key = pick(r, kmsg.Produce, kmsg.Produce, kmsg.Produce, kmsg.Fetch, kmsg.ListOffsets, kmsg.Heartbeat).Int16()
			if strings.HasPrefix(f.part, "client") { // which speaks HTTP as well
				f.net.key = pick(r, f.net.key, httpPost, httpPost, httpGet)
			}
			f.net.how = pick(r, loseAnswer, loseAnswer, loseRequest, delayIt)
			f.times = 1 + r.IntN(3)
		case atBroker:
			f.times = 1 + r.IntN(4)
			f.topic = pick(r, "journal", "journal", "journal", "requests", "reports", "inboxes", "sessions", "checkpoints")
			f.keys = producing
			switch r.IntN(8) {
			case 6, 7: // what a client gives up at once, and nothing was done
				f.err = pick(r, kerr.TopicAuthorizationFailed, kerr.PolicyViolation, kerr.InvalidRecord)
			case 0, 1:
				f.err = kerr.NotLeaderForPartition
			case 2, 3:
				f.err = kerr.NotEnoughReplicasAfterAppend // the work is done
			case 4:
				f.err = pick(r, kerr.UnknownProducerID, kerr.RequestTimedOut, kerr.InvalidProducerEpoch, kerr.OutOfOrderSequenceNumber)
			default:
				f.keys, f.err = fetching, pick(r, kerr.NotLeaderForPartition, kerr.OffsetOutOfRange, kerr.UnknownLeaderEpoch, kerr.KafkaStorageError)
			}
		case trip:
			f.net.key = kmsg.Produce.Int16()
			f.net.how = pick(r, fallBefore, fallAfter)
			f.net.skip = r.IntN(pick(r, 2, 10, 40))
			f.ghost = pick(r, 0, between(r, 0, time.Second), between(r, 0, 20*time.Second))
			f.lasts = between(r, 50*time.Millisecond, pick(r, 500*time.Millisecond, 8*time.Second))
		case clockJump:
			f.by = between(r, -10*time.Minute, 10*time.Minute)
		case rival:
			f.part = fmt.Sprintf("rival%d", rivals)
			f.lasts = between(r, time.Second, 15*time.Second)
			f.late, f.ghost = r.IntN(2) == 0, between(r, time.Second, 20*time.Second)
			rivals++
		case echo:
			f.times = 1 + r.IntN(10)
		case trim:
			f.topic = pick(r, "inboxes", "sessions")
		}
		p.Faults = append(p.Faults, f)
	}
	sort.SliceStable(p.Faults, func(i, j int) bool { return p.Faults[i].at < p.Faults[j].at })
}
