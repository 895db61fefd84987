package partition

import (
	"math/bits"
	"slices"

	"github.com/opstream/opstream/domain/operation"
)

// readyQueue holds the ready operations of one type: by priority, then in turns over organizations (weighted round
// robin), then by sequence.
type readyQueue struct {
	name   string
	levels [operation.PriorityMax + 1]level
	filled uint16 // bit p is set when levels[p] has something
	size   int
	bytes  int    // of the operations' requests
	served uint64 // dispatches, moved up when it was empty for a while: see Engine.ready
	spare  []*orgQueue
}

type level struct {
	byOrg map[string]*orgQueue
	turn  []*orgQueue // organizations in the order of their turns; those that have nothing are taken out when all have had theirs
	at    int
	size  int
}

type orgQueue struct {
	heap
	org    string
	weight int
	left   int // operations that it may still send in this turn
}

// spareMax is how many unused organization queues a type keeps, and spareCap how long their arrays may be.
const spareMax, spareCap = 64, 64

// priority is o's level. The border refuses others; a journal that has one must not stop the partition.
func priority(o *op) int8 {
	return min(max(o.state.Request.Priority, operation.PriorityMin), operation.PriorityMax)
}

func (q *readyQueue) push(o *op, weight func(string) int) {
	p := priority(o)
	l := &q.levels[p]
	oq := l.byOrg[o.state.Org]
	if oq == nil {
		oq = q.enter(l, o.state.Org, max(weight(o.state.Org), 1))
	}
	oq.set(o, int64(o.state.RequestedPlace))
	o.queue, o.ready = q, oq
	l.size++
	q.size++
	q.bytes += len(o.state.Request.Raw)
	q.filled |= 1 << p
}

func (q *readyQueue) enter(l *level, org string, weight int) *orgQueue {
	var oq *orgQueue
	if n := len(q.spare); n > 0 {
		oq, q.spare = q.spare[n-1], q.spare[:n-1]
	} else {
		oq = &orgQueue{heap: heap{place: inReady}}
	}
	oq.org, oq.weight, oq.left = org, weight, weight
	if l.byOrg == nil {
		l.byOrg = make(map[string]*orgQueue)
	}
	l.byOrg[org] = oq
	l.turn = append(l.turn, oq)
	return oq
}

// leave takes the organization at l.turn[i], which has nothing, out of the turns.
func (q *readyQueue) leave(l *level, i int) {
	oq := l.turn[i]
	l.turn = slices.Delete(l.turn, i, i+1)
	if i < l.at {
		l.at--
	}
	q.gone(l, oq)
}

// sweep takes all organizations that have nothing out of the turns, in one go: there may be as many as had something at once.
// The next turn is the first one's.
func (q *readyQueue) sweep(l *level) {
	l.turn = slices.DeleteFunc(l.turn, func(oq *orgQueue) bool {
		if len(oq.entries) > 0 {
			return false
		}
		q.gone(l, oq)
		return true
	})
	if l.at = 0; len(l.turn) == 0 && cap(l.turn) > keepMax {
		l.turn = nil
	}
}

// gone keeps the queue of an organization that has left the turns for another one.
func (q *readyQueue) gone(l *level, oq *orgQueue) {
	delete(l.byOrg, oq.org)
	if len(q.spare) < spareMax && cap(oq.entries) <= spareCap {
		q.spare = append(q.spare, oq)
	}
}

// drop takes o out, wherever it stands.
func (q *readyQueue) drop(o *op) {
	p := priority(o)
	l, oq := &q.levels[p], o.ready
	oq.remove(o)
	o.ready = nil
	q.size--
	q.bytes -= len(o.state.Request.Raw)
	if l.size--; l.size == 0 {
		q.filled &^= 1 << p
		if len(l.turn) > spareMax { // what comes next may be other organizations', behind which no turn would ever end
			q.sweep(l)
		}
	}
}

// tidy takes the organization out that has nothing left, after a drop that was not its turn: a queue that nobody serves
// must not remember all that ever passed.
func (q *readyQueue) tidy(p int8, oq *orgQueue) {
	if l := &q.levels[p]; len(oq.entries) == 0 {
		if i := slices.Index(l.turn, oq); i >= 0 {
			q.leave(l, i)
		}
	}
}

// top returns the highest priority that has a ready operation, or -1.
func (q *readyQueue) top() int { return bits.Len16(q.filled) - 1 }

// next returns the operation whose turn it is, and counts the turn; the caller takes it out. There must be one.
func (q *readyQueue) next() *op {
	l := &q.levels[q.top()]
	for {
		if l.at >= len(l.turn) {
			q.sweep(l)
		}
		oq := l.turn[l.at]
		if len(oq.entries) == 0 {
			l.at++
			continue
		}
		if oq.left--; oq.left <= 0 {
			oq.left = oq.weight
			l.at++
		}
		return oq.entries[0].o
	}
}
