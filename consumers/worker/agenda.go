package worker

import "time"

// What a session must do at some time, for attempts that run. Most attempts end within microseconds, so for them nothing is
// scheduled that would have to be taken back at a price: they stand in a list by order of their starts, whose head alone
// has a time. Only those that outlive announceAfter enter the heap of due times. One timer serves all.

const (
	// announceAfter is how long an attempt runs before its start is reported on its own.
	announceAfter = 50 * time.Millisecond
	// progressEvery is the least distance between two reports of progress.
	progressEvery = 200 * time.Millisecond
)

// starts is a list of the running attempts whose start was not reported, oldest first.
type starts struct{ first, last *attempt }

func (l *starts) push(a *attempt) {
	a.before, a.after = l.last, nil
	if l.last == nil {
		l.first = a
	} else {
		l.last.after = a
	}
	l.last = a
	a.listed = true
}

func (l *starts) remove(a *attempt) {
	if !a.listed {
		return
	}
	if a.before == nil {
		l.first = a.after
	} else {
		a.before.after = a.after
	}
	if a.after == nil {
		l.last = a.before
	} else {
		a.after.before = a.before
	}
	a.before, a.after, a.listed = nil, nil, false
}

// dues is a min-heap of attempts by their due times. An attempt knows its index plus one, 0 when it is not in the heap.
type dues []*attempt

// set puts a at due, or moves it there. The zero time takes it out.
func (h *dues) set(a *attempt, due time.Time) {
	if due.IsZero() {
		h.remove(a)
		return
	}
	a.due = due
	if a.index == 0 {
		*h = append(*h, a)
		a.index = len(*h)
	}
	h.fix(a.index - 1)
}

func (h *dues) remove(a *attempt) {
	if a.index == 0 {
		return
	}
	i, last := a.index-1, len(*h)-1
	h.swap(i, last)
	(*h)[last] = nil
	*h = (*h)[:last]
	a.index = 0
	if i < last {
		h.fix(i)
	}
}

func (h *dues) fix(i int) {
	for i > 0 {
		up := (i - 1) / 2
		if !(*h)[i].due.Before((*h)[up].due) {
			break
		}
		h.swap(i, up)
		i = up
	}
	for {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(*h); c++ {
			if (*h)[c].due.Before((*h)[least].due) {
				least = c
			}
		}
		if least == i {
			return
		}
		h.swap(i, least)
		i = least
	}
}

func (h *dues) swap(i, j int) {
	s := *h
	s[i], s[j] = s[j], s[i]
	s[i].index, s[j].index = i+1, j+1
}
