package worker

import (
	"math/bits"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/safeguard"
)

// A memory is what a session knows of the places (partition, offset of the dispatching event) that it was told of. The
// rules are those of the design's protocol: what is below a partition's low mark is refused, what was seen is not started
// again but answered with what is known of it, everything else is new. So an item may arrive any number of times, in any
// order and at any later time.
//
// A place that has ended costs one bit. It is remembered until the mark has passed it: as long as one attempt runs, its
// partition's mark stands still, and everything that the session does meanwhile must stay known.
//
// It is not safe for use by several goroutines.
type memory struct {
	partitions map[int32]*places
	running    map[spot]*attempt
	answers    answers
}

// spot names the event that dispatched an attempt.
type spot struct {
	partition int32
	place     operation.Place
}

// verdict is what the memory says of an item.
type verdict uint8

const (
	isNew     verdict = iota
	isRefused         // below the mark: it has ended, and the session does not know more
	isRunning         // it is here, queued or running
	isEnded           // it was here
)

// places are the ended places of one partition, from the low mark on, as a sparse set of bits.
type places struct {
	low   operation.Place
	pages map[operation.Place]*page // by place >> pageBits
	first operation.Place           // no page is below
}

const pageBits = 9

type page [1 << pageBits / 64]uint64

func newMemory() *memory {
	return &memory{partitions: make(map[int32]*places), running: make(map[spot]*attempt)}
}

func (m *memory) of(partition int32) *places {
	p := m.partitions[partition]
	if p == nil {
		p = &places{pages: make(map[operation.Place]*page)}
		m.partitions[partition] = p
	}
	return p
}

// judge looks a place up. It changes nothing.
func (m *memory) judge(at spot) (verdict, *attempt) {
	p := m.partitions[at.partition]
	if p == nil {
		return isNew, nil
	}
	// The mark comes before what is known: an attempt that still runs below it has ended as far as the log is concerned.
	if at.place < p.low {
		return isRefused, nil
	}
	if a := m.running[at]; a != nil {
		return isRunning, a
	}
	if p.has(at.place) {
		return isEnded, nil
	}
	return isNew, nil
}

// raise moves a partition's mark up to low and forgets what is below. The mark never goes down: an item that was sent long
// ago tells an old one.
func (m *memory) raise(partition int32, low operation.Place) {
	m.of(partition).raise(low)
}

// begin enters a new place as running.
func (m *memory) begin(at spot, a *attempt) {
	m.of(at.partition)
	m.running[at] = a
}

// end enters a place as ended, with the report that answers for it from now on.
func (m *memory) end(at spot, answer *answer) {
	delete(m.running, at)
	if safeguard.NoMemory {
		return
	}
	p := m.of(at.partition)
	if at.place < p.low {
		return
	}
	p.add(at.place)
	if answer != nil {
		m.answers.add(answer)
	}
}

// answer returns what an ended place was answered with, nil when that is no longer known.
func (m *memory) answer(at spot) *answer { return m.answers.find(at) }

func (p *places) has(place operation.Place) bool {
	g := p.pages[place>>pageBits]
	return g != nil && g[place>>6&(1<<(pageBits-6)-1)]&(1<<(place&63)) != 0
}

func (p *places) add(place operation.Place) {
	at := place >> pageBits
	g := p.pages[at]
	if g == nil {
		g = new(page)
		if len(p.pages) == 0 || at < p.first {
			p.first = at
		}
		p.pages[at] = g
	}
	g[place>>6&(1<<(pageBits-6)-1)] |= 1 << (place & 63)
}

func (p *places) raise(low operation.Place) {
	if low <= p.low {
		return
	}
	p.low = low
	to := low >> pageBits
	if to-p.first > operation.Place(len(p.pages)) {
		for at := range p.pages {
			if at < to {
				delete(p.pages, at)
			}
		}
	} else {
		for ; p.first < to; p.first++ {
			delete(p.pages, p.first)
		}
	}
	p.first = max(p.first, to)
}

// size counts the ended places that are remembered, those below the mark in its own page included.
func (p *places) size() int {
	n := 0
	for _, g := range p.pages {
		for _, w := range g {
			n += bits.OnesCount64(w)
		}
	}
	return n
}

// answers keeps the last reports, so that an item which arrives again is answered again. The log has them already, or will
// have as soon as the client gets them through: an answer is for a scheduler that asks, and what is not kept any more is
// answered as given back. So it may be bounded, by number and by bytes.
type answers struct {
	ring  []*answer // by order of their ends; next is the oldest once it is full
	next  int
	bytes int
}

const (
	maxAnswers     = 4096
	maxAnswerBytes = 8 << 20
)

func (r *answers) add(a *answer) {
	a.size = len(a.command.Result) + len(a.command.Carry) + len(a.key)
	if f := a.command.Failure; f != nil {
		a.size += len(f.Message) + len(f.FriendlyMessage)
	}
	if len(r.ring) < maxAnswers {
		r.ring = append(r.ring, a)
	} else {
		r.drop(r.next)
		r.ring[r.next] = a
		r.next = (r.next + 1) % maxAnswers
	}
	r.bytes += a.size
	for i := 0; r.bytes > maxAnswerBytes && i < len(r.ring); i++ {
		r.drop((r.next + i) % len(r.ring))
	}
}

func (r *answers) drop(i int) {
	if a := r.ring[i]; a != nil {
		r.bytes -= a.size
		r.ring[i] = nil
	}
}

func (r *answers) find(at spot) *answer {
	for i := len(r.ring) - 1; i >= 0; i-- {
		if a := r.ring[i]; a != nil && a.at == at {
			return a
		}
	}
	return nil
}
