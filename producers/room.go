package producers

import (
	"context"
	"errors"
	"sync"
)

// room bounds the records that are under way, by number and by size. The Kafka client has such bounds too, but a record that
// waits at them does so with a context, and a context that ends fails all records of its partition, whoever sent them.
type room struct {
	mu      sync.Mutex
	records int // that may still come in
	bytes   int
	largest int // bytes, when there is nothing inside
	closed  bool
	waiting []*entrant // first come, first served
}

type entrant struct {
	size int
	in   chan bool // whether it was let in, or the room was closed
}

var errRoomClosed = errors.New("closed")

func newRoom(records, bytes int) *room {
	return &room{records: records, bytes: bytes, largest: bytes}
}

func (r *room) fits(size int) bool {
	return r.records > 0 && (size <= r.bytes || r.bytes == r.largest)
}

// enter waits until there is room for a record of the size.
func (r *room) enter(ctx context.Context, size int) error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return errRoomClosed
	}
	if len(r.waiting) == 0 && r.fits(size) {
		r.records--
		r.bytes -= size
		r.mu.Unlock()
		return nil
	}
	e := &entrant{size, make(chan bool, 1)}
	r.waiting = append(r.waiting, e)
	r.mu.Unlock()
	select {
	case in := <-e.in:
		if !in {
			return errRoomClosed
		}
		return nil
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.waiting {
		if r.waiting[i] == e {
			r.waiting = append(r.waiting[:i], r.waiting[i+1:]...)
			r.admit() // those behind it may be smaller
			return context.Cause(ctx)
		}
	}
	// It was let in, or turned away, in the same moment.
	if in := <-e.in; in {
		return nil
	}
	return errRoomClosed
}

// leave makes the room of a record free.
func (r *room) leave(size int) {
	r.mu.Lock()
	r.records++
	r.bytes += size
	r.admit()
	r.mu.Unlock()
}

func (r *room) admit() {
	for len(r.waiting) > 0 && r.fits(r.waiting[0].size) {
		e := r.waiting[0]
		r.waiting[0] = nil
		r.waiting = r.waiting[1:]
		r.records--
		r.bytes -= e.size
		e.in <- true
	}
}

// close turns away everybody who waits and who comes. It says whether this was the first call.
func (r *room) close() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.closed = true
	for _, e := range r.waiting {
		e.in <- false
	}
	r.waiting = nil
	return true
}
