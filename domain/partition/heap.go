package partition

// heap is a min-heap of operations that knows where each one stands, so that one that goes leaves nothing behind.
type heap struct {
	place   int // which of op.at holds the index: inReady or inTimers
	entries []entry
}

type entry struct {
	key int64
	o   *op
}

// The places in op.at.
const (
	inReady = iota
	inTimers
	heapPlaces
)

func (h *heap) put(i int, n entry) {
	h.entries[i] = n
	n.o.at[h.place] = int32(i + 1)
}

// set enters o, or moves it to its new key.
func (h *heap) set(o *op, key int64) {
	i := int(o.at[h.place]) - 1
	if i < 0 {
		i = len(h.entries)
		h.entries = append(h.entries, entry{})
	} else if h.entries[i].key == key {
		return
	}
	h.fix(i, entry{key, o})
}

// remove takes o out, if it is there.
func (h *heap) remove(o *op) {
	i := int(o.at[h.place]) - 1
	if i < 0 {
		return
	}
	o.at[h.place] = 0
	last := len(h.entries) - 1
	moved := h.entries[last]
	h.entries[last] = entry{}
	h.entries = h.entries[:last]
	if i < last {
		h.fix(i, moved)
	}
}

// fix puts n where it belongs, beginning at the free index i.
func (h *heap) fix(i int, n entry) {
	start := i
	for i > 0 {
		parent := (i - 1) / 2
		if h.entries[parent].key <= n.key {
			break
		}
		h.put(i, h.entries[parent])
		i = parent
	}
	if i == start {
		for {
			child := 2*i + 1
			if child >= len(h.entries) {
				break
			}
			if r := child + 1; r < len(h.entries) && h.entries[r].key < h.entries[child].key {
				child = r
			}
			if n.key <= h.entries[child].key {
				break
			}
			h.put(i, h.entries[child])
			i = child
		}
	}
	h.put(i, n)
}
