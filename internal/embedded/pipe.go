package embedded

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// pipeBuffer is how many bytes a direction of a pipe holds that nobody reads yet. More makes the writer wait.
const pipeBuffer = 64 << 10

// pipe makes two ends of a connection within this process. Unlike net.Pipe, a write does not wait for its reader while the buffer
// has room, as on a socket; unlike a socket, it costs no system calls.
func pipe() (client, server net.Conn) {
	there, back := newHalf(), newHalf()
	return &pipeEnd{in: back, out: there}, &pipeEnd{in: there, out: back}
}

// half is one direction of a pipe.
type half struct {
	mu       sync.Mutex
	readable sync.Cond
	writable sync.Cond

	buf  []byte // what was written and not read, from the first use on of pipeBuffer bytes
	from int    // of buf that is read already
	want []byte // where a reader waits that has found nothing; what is written goes there without a detour
	got  int

	ended  bool // no more will be written
	broken bool // no more will be read

	reading, writing limit
	readers, writers sync.Mutex // one call of each kind at a time, as whole calls must not mix
}

func newHalf() *half {
	h := &half{}
	h.readable.L, h.writable.L = &h.mu, &h.mu
	h.reading.wake, h.writing.wake = &h.readable, &h.writable
	return h
}

// limit ends the waiting of one kind of call. Its timer runs only while somebody waits, and is set anew only when it would
// come too late: deadlines move with every request, and nearly none is ever reached.
type limit struct {
	at    time.Time
	wake  *sync.Cond
	timer *time.Timer
	armed time.Time // when the timer fires; zero: it does not
}

func (d *limit) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

// wait is wake.Wait, which ends at the deadline at the latest. The lock is held.
func (d *limit) wait() {
	if !d.at.IsZero() && (d.armed.IsZero() || d.armed.After(d.at)) {
		d.armed = d.at
		if left := time.Until(d.at); d.timer == nil {
			d.timer = time.AfterFunc(left, func() {
				d.wake.L.Lock()
				defer d.wake.L.Unlock()
				d.armed = time.Time{}
				d.wake.Broadcast()
			})
		} else {
			d.timer.Reset(left)
		}
	}
	d.wake.Wait()
}

func (d *limit) set(t time.Time) {
	d.wake.L.Lock()
	defer d.wake.L.Unlock()
	d.at = t
	d.wake.Broadcast() // who waits looks at it
}

func (h *half) read(p []byte) (int, error) {
	h.readers.Lock()
	defer h.readers.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.broken:
			return 0, io.ErrClosedPipe
		case h.reading.passed():
			return 0, os.ErrDeadlineExceeded
		case h.from < len(h.buf):
			n := copy(p, h.buf[h.from:])
			if h.from += n; h.from == len(h.buf) {
				h.buf, h.from = h.buf[:0], 0
				h.writable.Signal()
			}
			return n, nil
		case h.ended:
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		h.want, h.got = p, 0
		h.writable.Signal()
		h.reading.wait()
		h.want = nil
		if h.got > 0 {
			return h.got, nil
		}
	}
}

func (h *half) write(p []byte) (n int, err error) {
	h.writers.Lock()
	defer h.writers.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.ended, h.broken:
			return n, io.ErrClosedPipe
		case h.writing.passed():
			return n, os.ErrDeadlineExceeded
		}
		if len(h.buf) == 0 && h.want != nil && h.got == 0 {
			h.got = copy(h.want, p[n:])
			n += h.got
			h.readable.Signal()
		}
		if room := pipeBuffer - len(h.buf); n < len(p) && room > 0 {
			if h.buf == nil {
				h.buf = make([]byte, 0, pipeBuffer)
			}
			more := min(room, len(p)-n)
			h.buf = append(h.buf, p[n:n+more]...)
			n += more
			h.readable.Signal()
		}
		if n == len(p) {
			return n, nil
		}
		h.writing.wait()
	}
}

// close ends the direction from one side: what was written before a writer's end is still read.
func (h *half) close(writer bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if writer {
		h.ended = true
	} else {
		h.broken = true
		h.buf, h.from = nil, 0
	}
	for _, d := range []*limit{&h.reading, &h.writing} {
		if d.timer != nil {
			d.timer.Stop()
			d.armed = time.Time{}
		}
	}
	h.readable.Broadcast()
	h.writable.Broadcast()
}

// pipeEnd is one end of a pipe.
type pipeEnd struct {
	in, out *half
}

func (e *pipeEnd) Read(p []byte) (int, error) {
	n, err := e.in.read(p)
	return n, e.fault("read", err)
}

func (e *pipeEnd) Write(p []byte) (int, error) {
	n, err := e.out.write(p)
	return n, e.fault("write", err)
}

// fault dresses an error as those of sockets are; the end of what there is to read stays what it is.
func (e *pipeEnd) fault(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return &net.OpError{Op: op, Net: pipeNetwork, Source: e.LocalAddr(), Addr: e.RemoteAddr(), Err: err}
}

func (e *pipeEnd) Close() error {
	e.out.close(true)
	e.in.close(false)
	return nil
}

func (e *pipeEnd) LocalAddr() net.Addr  { return pipeAddr{} }
func (e *pipeEnd) RemoteAddr() net.Addr { return pipeAddr{} }

func (e *pipeEnd) SetDeadline(t time.Time) error {
	e.in.reading.set(t)
	e.out.writing.set(t)
	return nil
}

func (e *pipeEnd) SetReadDeadline(t time.Time) error {
	e.in.reading.set(t)
	return nil
}

func (e *pipeEnd) SetWriteDeadline(t time.Time) error {
	e.out.writing.set(t)
	return nil
}

const pipeNetwork = "process"

type pipeAddr struct{}

func (pipeAddr) Network() string { return pipeNetwork }
func (pipeAddr) String() string  { return "127.0.0.1:0" } // kfake's access rules want a host
