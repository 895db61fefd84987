package partition

import "github.com/opstream/opstream/domain/operation"

// readyQueue holds the ready operations of one type: by priority, then in turns over organizations (weighted round
// robin), then by sequence. Operations that stop being ready are left in place and passed over when they come up.
type readyQueue struct {
	name   string
	levels [operation.PriorityMax + 1]level
	size   int // operations that are ready, the left-overs not counted
	served uint64
}

type level struct {
	byOrg map[string]*orgQueue
	turn  []*orgQueue // organizations that have something, in the order of their turns
	at    int
	size  int
}

type orgQueue struct {
	org    string
	weight int
	left   int // operations that it may still send in this turn
	heap   []*op
}

func (q *readyQueue) push(o *op, weight func(string) int) {
	l := &q.levels[o.state.Request.Priority]
	if l.byOrg == nil {
		l.byOrg = make(map[string]*orgQueue)
	}
	oq := l.byOrg[o.state.Org]
	if oq == nil {
		oq = &orgQueue{org: o.state.Org, weight: weight(o.state.Org)}
		oq.left = oq.weight
		l.byOrg[o.state.Org] = oq
		l.turn = append(l.turn, oq)
	}
	if !o.inHeap { // else its old entry counts again
		oq.push(o)
	}
	o.queued, o.inHeap = true, true
	l.size++
	q.size++
}

// drop takes o out of the count; its entry in the heap is passed over later.
func (q *readyQueue) drop(o *op) {
	o.queued = false
	q.levels[o.state.Request.Priority].size--
	q.size--
}

// top returns the highest priority that has a ready operation, or -1.
func (q *readyQueue) top() int {
	if q.size == 0 {
		return -1
	}
	for p := len(q.levels) - 1; p >= 0; p-- {
		if q.levels[p].size > 0 {
			return p
		}
	}
	return -1
}

// pop takes the next operation out, or returns nil when there is none.
func (q *readyQueue) pop() *op {
	p := q.top()
	if p < 0 {
		return nil
	}
	l := &q.levels[p]
	for len(l.turn) > 0 {
		if l.at >= len(l.turn) {
			l.at = 0
		}
		oq := l.turn[l.at]
		o := oq.pop()
		if o == nil { // nothing left of this organization
			l.turn = append(l.turn[:l.at], l.turn[l.at+1:]...)
			delete(l.byOrg, oq.org)
			continue
		}
		if oq.left--; oq.left <= 0 {
			oq.left = oq.weight
			l.at++
		}
		q.drop(o)
		return o
	}
	return nil
}

// push adds o to the heap by sequence. Almost always it is the youngest and stays where it is put.
func (q *orgQueue) push(o *op) {
	q.heap = append(q.heap, o)
	i := len(q.heap) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if q.heap[parent].state.RequestedPlace <= o.state.RequestedPlace {
			break
		}
		q.heap[i] = q.heap[parent]
		i = parent
	}
	q.heap[i] = o
}

// pop returns the oldest operation that is still queued.
func (q *orgQueue) pop() *op {
	for len(q.heap) > 0 {
		o := q.heap[0]
		last := len(q.heap) - 1
		moved := q.heap[last]
		q.heap[last] = nil
		q.heap = q.heap[:last]
		if last > 0 {
			i := 0
			for {
				child := 2*i + 1
				if child >= last {
					break
				}
				if r := child + 1; r < last && q.heap[r].state.RequestedPlace < q.heap[child].state.RequestedPlace {
					child = r
				}
				if moved.state.RequestedPlace <= q.heap[child].state.RequestedPlace {
					break
				}
				q.heap[i] = q.heap[child]
				i = child
			}
			q.heap[i] = moved
		}
		o.inHeap = false
		if o.queued {
			return o
		}
	}
	return nil
}
