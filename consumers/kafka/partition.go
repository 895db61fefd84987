package kafka

import (
	"context"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// A partition hands out the records of one partition, in order, from the moment when the client got it until it is taken away.
type partition struct {
	sub *subscription
	id  int32

	ctx      context.Context         //nolint:containedctx // above the contexts of all its messages; it lives as long as the partition is held
	giveUp   context.CancelCauseFunc // ends ctx
	stop     func()                  // closes stopping, once
	stopping chan struct{}           // closed: hand out nothing more
	done     chan struct{}           // closed: run has returned, nothing will be marked any more

	mu     sync.Mutex
	queue  [][]*kgo.Record
	bytes  int // of all records pushed and not done with
	paused bool
	filled chan struct{} // holds a token if the queue may have grown
}

func newPartition(s *subscription, id int32) *partition {
	p := &partition{
		sub:      s,
		id:       id,
		stopping: make(chan struct{}),
		done:     make(chan struct{}),
		filled:   make(chan struct{}, 1),
	}
	p.stop = sync.OnceFunc(func() { close(p.stopping) })
	p.ctx, p.giveUp = context.WithCancelCause(s.values)
	return p
}

// recordOverhead is about what a record costs beside its bytes.
const recordOverhead = 256

func size(r *kgo.Record) int {
	n := recordOverhead + len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value)
	}
	return n
}

// push never blocks: the poller serves all partitions, and a slow one must not hold up the others.
func (p *partition) push(records []*kgo.Record) {
	n := 0
	for _, r := range records {
		n += size(r)
	}
	p.mu.Lock()
	p.queue = append(p.queue, records)
	p.bytes += n
	if !p.paused && p.bytes >= p.sub.config.BufferBytes {
		p.paused = true
		p.sub.client.PauseFetchPartitions(p.self())
	}
	p.mu.Unlock()
	select {
	case p.filled <- struct{}{}:
	default:
	}
}

// release is the other half of push. Fetching goes on when a quarter is left: early enough that the handler does not wait for
// the next fetch, and late enough that a slow handler does not switch at every record.
func (p *partition) release(r *kgo.Record) {
	p.mu.Lock()
	p.bytes -= size(r)
	resume := p.paused && p.bytes <= p.sub.config.BufferBytes/4
	p.mu.Unlock()
	if resume {
		p.unpause()
	}
}

// unpause is also needed for a partition that is taken away: the client would remember the pause if the partition came back.
func (p *partition) unpause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paused {
		p.paused = false
		p.sub.client.ResumeFetchPartitions(p.self())
	}
}

func (p *partition) self() map[string][]int32 { return map[string][]int32{p.sub.topic: {p.id}} }

// next returns the oldest records in the queue, or nil if the partition stops.
func (p *partition) next() []*kgo.Record {
	for {
		p.mu.Lock()
		if len(p.queue) > 0 {
			records := p.queue[0]
			p.queue[0] = nil
			p.queue = p.queue[1:]
			p.mu.Unlock()
			return records
		}
		p.mu.Unlock()
		select {
		case <-p.filled:
		case <-p.stopping:
			return nil
		}
	}
}

func (p *partition) run() {
	defer close(p.done)
	defer p.giveUp(ErrClosed) // only frees the context: no message is in hand any more
	for records := p.next(); records != nil; records = p.next() {
		for i, r := range records {
			if !p.deliver(r) {
				return
			}
			p.sub.client.MarkCommitRecords(r) // does nothing without a group
			p.release(r)
			records[i] = nil // a long batch should not hold what is done
		}
	}
}

// deliver hands the record out until it is acknowledged, and returns true then or when it cannot be decoded. It returns false if
// the partition stopped before.
func (p *partition) deliver(r *kgo.Record) bool {
	for {
		select {
		case <-p.stopping: // the select below would choose by chance
			return false
		default:
		}
		answer := p.deliverOnce(r)
		if answer != nacked {
			return answer == acked
		}
		if !sleep(p.sub.config.NackResendSleep, p.stopping) {
			return false
		}
	}
}

type answer int

const (
	acked answer = iota
	nacked
	none // the partition stopped
)

func (p *partition) deliverOnce(r *kgo.Record) answer {
	msg, err := p.sub.config.Marshaler.Unmarshal(r)
	if err != nil {
		p.sub.config.OnUndecodable(p.ctx, r, err)
		return acked
	}
	ctx, cancel := context.WithCancel(&messageContext{Context: p.ctx, record: r})
	defer cancel()
	msg.SetContext(ctx)
	select {
	case p.sub.out <- msg:
	case <-p.stopping:
		return none
	}
	select {
	case <-msg.Acked():
		return acked
	case <-msg.Nacked():
		return nacked
	case <-p.ctx.Done():
	}
	select {
	case <-msg.Acked(): // at the last moment
		return acked
	default:
		return none
	}
}
