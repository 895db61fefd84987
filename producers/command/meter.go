package command

import (
	"io"
	"net/http"

	"golang.org/x/sync/semaphore"
)

// metered bounds what the bodies take that are read or wait for their answer. They count as they come in: who only says that he
// will send much takes nothing from the others.
func (s *service) metered(handle func(http.ResponseWriter, *http.Request) error) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		m := &meter{ReadCloser: r.Body, room: s.bodies}
		defer func() { s.bodies.Release(m.taken) }()
		r.Body = m
		return handle(w, r)
	}
}

// meter takes room for what is read from a body.
type meter struct {
	io.ReadCloser

	room  *semaphore.Weighted
	taken int64
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	if n > 0 && !m.room.TryAcquire(int64(n)) {
		return 0, overloaded(0)
	}
	m.taken += int64(max(n, 0))
	return n, err
}
