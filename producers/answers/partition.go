package answers

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/opstream/opstream/producers"
)

// call is a command under way. Its fields belong to its partition's lock until done is closed.
type call struct {
	start  time.Time
	offset int64 // of the command on its topic, -1 while that is not known
	over   bool  // answered, failed or given up
	rec    *kgo.Record
	err    error
	done   chan struct{}
	poured chan struct{} // where it holds a slot, too; nil for nowhere
}

// early is the first event for a request of which nobody has said yet that he waits for it.
type early struct {
	offset int64
	rec    *kgo.Record
}

// earlyMax bounds what is kept while no offset comes from the broker: it happens only when appends hang and reads do not.
const earlyMax = 16384

// partition matches the commands of one partition with their answers.
type partition struct {
	number   int32
	requests string // topic
	slots    chan struct{}

	// Of the goroutine that reads.
	follower follower
	from     int64 // below, the chain is followed and nothing is delivered
	seen     []early

	mu      sync.Mutex
	ended   error
	unacked int
	settled time.Time // when the broker last settled one of them, or when the first one began
	waiting []*call   // acknowledged, by offset; some are over
	over    int       // number of those
	early   []early   // by offset; only while unacked > 0
	lost    int64     // of early, what is not above this was dropped
	last    int64     // highest offset for which an event was seen
	sent    int64     // highest offset of a command that was acknowledged
	speed   speed

	// The oldest command that was given up before its answer came: it is on the log, so until it or a later one is answered
	// the partition is as late as it is.
	givenUp      int64 // its offset, or -1
	givenUpSince time.Time
	probed       time.Time

	latency  time.Duration // of answers, smoothed
	recent   time.Duration // of the last answer
	recentAt time.Time     // when it came
	moved    chan struct{} // closed when an answer comes; nil when nobody waits for that
}

// speed is how fast the scheduler decides what stands on the topic, whoever sent it. It is measured while commands wait, because
// otherwise nobody knows whether there was anything to decide.
type speed struct {
	since time.Time // when the measurement began; zero while nothing waits
	from  int64     // the last offset decided then
	heard time.Time // when it was last seen that something was decided, or when the measurement began
	rate  float64   // requests a second, 0 while it is not known
	at    time.Time // when it was measured last
}

const (
	// speedOver is how long a speed is measured over: the scheduler takes requests in by fits and starts.
	speedOver = time.Second
	// speedKept is how long a measured speed is believed when no new one comes.
	speedKept = 10 * time.Second
)

// waits says that a command waits, with what is decided so far.
func (s *speed) waits(now time.Time, last int64) {
	if s.since.IsZero() && last >= 0 {
		s.since, s.from, s.heard = now, last, now
	}
}

// decided says how far the scheduler has come, and whether commands wait for it to come further. What was decided after a silence
// says nothing of how fast it goes on.
func (s *speed) decided(now time.Time, last int64, more bool) {
	if s.since.IsZero() {
		return
	}
	if silence := now.Sub(s.heard); silence >= speedOver {
		s.since, s.from = now, last
	}
	s.heard = now
	if over := now.Sub(s.since); over >= speedOver {
		s.rate, s.at = float64(last-s.from)/over.Seconds(), now
		s.since, s.from = now, last
	}
	if !more {
		s.since = time.Time{}
	}
}

// ahead is how long the scheduler will take for so many requests, 0 when that is not known.
func (s *speed) ahead(now time.Time, requests int64) time.Duration {
	if requests <= 0 || s.rate == 0 || now.Sub(s.at) > speedKept {
		return 0
	}
	return time.Duration(min(float64(requests)/s.rate, time.Hour.Seconds()) * float64(time.Second))
}

// probeEvery is how often one command is let through to a partition that is late and from which nobody waits to hear: the
// answers missed may have gone for good.
const probeEvery = time.Second

// age is how long the oldest command has been waiting, and whether there is one whose caller still waits.
func (p *partition) age(now time.Time) (age time.Duration, waited bool) {
	if p.unacked > 0 {
		age, waited = now.Sub(p.settled), true
	}
	for len(p.waiting) > 0 && p.waiting[0].over {
		p.pop()
	}
	if len(p.waiting) > 0 {
		age, waited = max(age, now.Sub(p.waiting[0].start)), true
	}
	if p.givenUp >= 0 {
		age = max(age, now.Sub(p.givenUpSince))
	}
	return age, waited
}

// refuses says how late the partition is and whether it takes no command now. It is as late as its oldest command has been waiting; or
// as a new one will have to wait, because when the oldest has waited for too long, those that came behind it meanwhile will have
// to wait for longer; or, when the last answer was too late, as late as that was: others than this process fill the log, too, and
// that nobody here waits for anything does not make it short.
func (p *partition) refuses(now time.Time, lagMax time.Duration) (time.Duration, bool) {
	age, waited := p.age(now)
	ahead := p.speed.ahead(now, max(p.sent-p.last, 0)+int64(p.unacked))
	age = max(age, ahead+ahead/3) // the workers' time is shared anew all the while: this partition may be slower than it was
	if p.recent > lagMax && now.Sub(p.recentAt) < speedKept {
		age = max(age, p.recent)
	}
	return age, age > lagMax && (waited || now.Sub(p.probed) < probeEvery)
}

func (p *partition) pop() *call {
	c := p.waiting[0]
	p.waiting[0] = nil
	p.waiting = p.waiting[1:]
	if c.over && p.over > 0 {
		p.over--
	}
	return c
}

// enter begins a call, unless the partition is later than lagMax; then it returns how late, and what is closed when that
// may have changed.
func (p *partition) enter(now time.Time, lagMax time.Duration) (c *call, late time.Duration, moved <-chan struct{}, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended != nil {
		return nil, 0, nil, p.ended
	}
	switch age, refuses := p.refuses(now, lagMax); {
	case refuses:
		if p.moved == nil {
			p.moved = make(chan struct{})
		}
		return nil, age, p.moved, nil
	case age > lagMax:
		p.probed = now
	}
	if p.unacked++; p.unacked == 1 {
		p.settled = now
	}
	return &call{start: now, offset: -1, done: make(chan struct{})}, 0, nil, nil
}

// finish ends a call; the lock is held.
func (p *partition) finish(c *call, rec *kgo.Record, err error) {
	if c.over {
		return
	}
	c.over, c.rec, c.err = true, rec, err
	close(c.done)
	<-p.slots
	if c.poured != nil {
		<-c.poured
	}
}

// acked hears from the producer where the command stands, or that it does not. Calls come in the order of the log.
func (p *partition) acked(c *call, at producers.Position, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unacked--
	p.settled = time.Now()
	defer func() {
		if p.unacked == 0 {
			p.early = nil
		}
	}()
	switch {
	case err != nil:
		p.finish(c, nil, p.undelivered(err))
		return
	case at.Partition != p.number:
		p.finish(c, nil, &Unheard{Topic: p.requests, Partition: at.Partition, Offset: at.Offset, Reason: "the topic has got more partitions, which this process does not read; start it anew"})
		return
	}
	c.offset = at.Offset
	p.sent = max(p.sent, at.Offset)
	i := 0
	for i < len(p.early) && p.early[i].offset < at.Offset {
		i++
	}
	p.early = p.early[i:]
	switch {
	case len(p.early) > 0 && p.early[0].offset == at.Offset:
		p.answer(c, p.early[0].rec, p.settled)
		p.early = p.early[1:]
	case p.ended != nil:
		p.finish(c, nil, p.unheard(c, stoppedReading, nil))
	case at.Offset <= p.lost:
		p.finish(c, nil, p.unheard(c, "it passed while the broker had not yet told where the command stands", nil))
	case at.Offset <= p.last:
		p.finish(c, nil, p.unheard(c, passedOver, nil))
	default:
		if c.over {
			p.giveUp(c)
			return
		}
		p.waiting = append(p.waiting, c)
		p.speed.waits(p.settled, p.last)
	}
}

// Without the error that later commands get: that one says that a command is not on the log, and these are or may be.
const stoppedReading = "this process has stopped reading the journal"

const passedOver = "the scheduler has answered later commands and not this one"

func (p *partition) unheard(c *call, reason string, err error) error {
	return &Unheard{Topic: p.requests, Partition: p.number, Offset: c.offset, Reason: reason, Err: err}
}

func (p *partition) answer(c *call, rec *kgo.Record, now time.Time) {
	p.recent, p.recentAt = now.Sub(c.start), now
	p.latency += (p.recent - p.latency) / 16
	p.finish(c, rec, nil)
}

// abandon ends a call whose caller's time has ended. It returns false when the call had ended by itself.
func (p *partition) abandon(ctx context.Context, c *call) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.over {
		return false
	}
	p.finish(c, nil, p.unheard(c, "the caller's time ended first", context.Cause(ctx)))
	if c.offset >= 0 {
		p.giveUp(c)
		// The call stays in the queue; when most of the queue is such calls they are swept out.
		if p.over++; p.over > 1024 && p.over > len(p.waiting)/2 {
			kept := p.waiting[:0]
			for _, w := range p.waiting {
				if !w.over {
					kept = append(kept, w)
				}
			}
			clear(p.waiting[len(kept):])
			p.waiting, p.over = kept, 0
		}
	}
	return true
}

func (p *partition) giveUp(c *call) {
	if p.givenUp < 0 || c.start.Before(p.givenUpSince) {
		p.givenUp, p.givenUpSince = c.offset, c.start
	}
}

// asked says whether anybody wants to know of answers in this partition. It is asked before a batch is looked at: a command
// that comes later is answered in a later batch.
func (p *partition) asked() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unacked > 0 || len(p.waiting) > 0 || p.givenUp >= 0
}

// match gives the events of p.seen, which are caused by requests, to those who wait for them.
func (p *partition) match() {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.seen {
		if e.offset <= p.last {
			continue // a further event for a request that was answered
		}
		p.last = e.offset
		if p.givenUp >= 0 && e.offset >= p.givenUp {
			p.givenUp = -1
		}
		matched := false
		for len(p.waiting) > 0 && p.waiting[0].offset <= e.offset {
			if c := p.pop(); c.offset == e.offset {
				p.answer(c, e.rec, now)
				matched = true
			} else {
				p.finish(c, nil, p.unheard(c, passedOver, nil))
			}
		}
		if p.unacked > 0 && !matched {
			if len(p.early) >= earlyMax {
				p.lost = p.early[0].offset
				p.early = p.early[1:]
			}
			p.early = append(p.early, e)
		}
	}
	p.speed.decided(now, p.last, p.sent > p.last)
	if p.moved != nil {
		close(p.moved)
		p.moved = nil
	}
}

// end fails all that waits, and all that comes.
func (p *partition) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = err
	for _, c := range p.waiting {
		p.finish(c, nil, p.unheard(c, stoppedReading, nil))
	}
	p.waiting, p.over, p.early = nil, 0, nil
	if p.moved != nil {
		close(p.moved)
		p.moved = nil
	}
}
