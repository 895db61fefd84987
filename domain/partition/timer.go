package partition

import "github.com/opstream/opstream/domain/operation"

// timers is a min-heap of due times. An entry is stale when its operation's Until has become another one.
type timers []timer

type timer struct {
	at operation.Time
	o  *op
}

func (h *timers) push(at operation.Time, o *op) {
	*h = append(*h, timer{at, o})
	s := *h
	i := len(s) - 1
	for i > 0 && s[(i-1)/2].at > at {
		s[i] = s[(i-1)/2]
		i = (i - 1) / 2
	}
	s[i] = timer{at, o}
}

func (h *timers) pop() timer {
	s := *h
	top, last := s[0], len(s)-1
	moved := s[last]
	s[last] = timer{}
	s = s[:last]
	*h = s
	if last == 0 {
		return top
	}
	i := 0
	for {
		child := 2*i + 1
		if child >= last {
			break
		}
		if r := child + 1; r < last && s[r].at < s[child].at {
			child = r
		}
		if moved.at <= s[child].at {
			break
		}
		s[i] = s[child]
		i = child
	}
	s[i] = moved
	return top
}
