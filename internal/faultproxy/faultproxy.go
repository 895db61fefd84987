// Package faultproxy stands between a client and a server on loopback and does what a bad network does: it refuses, cuts, goes silent,
// and takes its time.
//
//	client ──▶ Address() ── link, a queue each way ──▶ target
//
// Every connection is two links. A link takes what its sender writes at once, as the network's buffers would, and delivers it when it is
// due and nothing holds it back; an end of the stream takes the same way, so that a stalled link tells nobody that the other side has
// gone. What is done to the proxy holds for all connections, those that are there and those to come.
package faultproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Direction is a way through the proxy; two of them may be added.
type Direction uint8

// The directions.
const (
	ToTarget Direction = 1 << iota
	ToClient
	Both = ToTarget | ToClient
)

const (
	// queueMax is what a link holds, in bytes: enough for 100 ms at 600 MB/s, and a bound on what a stall costs.
	queueMax = 64 << 20
	chunkMax = 64 << 10
	// dialTime is how long the target may take to accept.
	dialTime = 10 * time.Second
)

// Proxy forwards connections to a target. All methods may be called at any time, by anybody.
type Proxy struct {
	address string
	all     sync.WaitGroup

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced when anything below changes
	target   string
	listener net.Listener // nil while connections are refused
	closed   bool
	links    map[*link]bool
	stalled  Direction
	delay    time.Duration
	cut      Direction // the direction that ends after left more bytes; 0 for none
	left     int64
	accepted int
}

// Listen makes a proxy to target, host:port, at a free port of the loopback address. Target may be "" until [Proxy.SetTarget]; until then
// connections are cut as they come.
func Listen(target string) (*Proxy, error) {
	p := &Proxy{target: target, changed: make(chan struct{}), links: map[*link]bool{}}
	// A port below those that connections get by themselves: while the proxy refuses, nobody comes by it by accident.
	var last error
	for range 50 {
		p.address = fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000))
		if last = p.Admit(); last == nil {
			return p, nil
		}
	}
	return nil, fmt.Errorf("expected a free port between 20000 and 32000 on loopback, but found none in 50 tries: %w", last)
}

// Address is where the proxy listens, host:port. It stays the same for the proxy's life.
func (p *Proxy) Address() string { return p.address }

// SetTarget has new connections go to another target.
func (p *Proxy) SetTarget(target string) {
	p.change(func() { p.target = target })
}

// Refuse closes the proxy's port: who comes hears that nobody listens there. The connections that are there go on.
func (p *Proxy) Refuse() {
	p.change(func() {
		if p.listener != nil {
			_ = p.listener.Close() // only accepts
			p.listener = nil
		}
	})
}

// Admit listens again after [Proxy.Refuse]. It fails when another process has taken the port meanwhile.
func (p *Proxy) Admit() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil || p.closed {
		return nil
	}
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", p.address)
	if err != nil {
		return fmt.Errorf("listen at the proxy's address: %w", err)
	}
	p.listener = listener
	p.all.Go(func() { p.accept(listener) })
	return nil
}

// Cut resets all connections that are there, and returns how many.
func (p *Proxy) Cut() int {
	n := 0
	p.change(func() {
		for l := range p.links {
			l.reset()
		}
		n = len(p.links) / 2
	})
	return n
}

// Stall delivers nothing more in this direction, on any connection, until [Proxy.Resume]. Connections are accepted meanwhile, and what
// is written to them is taken, up to 64 MiB a connection and direction.
func (p *Proxy) Stall(d Direction) { p.change(func() { p.stalled |= d }) }

// Resume delivers again, first what has piled up.
func (p *Proxy) Resume(d Direction) { p.change(func() { p.stalled &^= d }) }

// Strand has the connections that are there deliver nothing more, ever, and tell neither side of the other's end, as when a router on
// the way has forgotten them; new ones are as they should be. It returns how many.
func (p *Proxy) Strand() int {
	n := 0
	p.change(func() {
		for l := range p.links {
			l.stranded = true
		}
		n = len(p.links) / 2
	})
	return n
}

// Delay has everything that comes from now on arrive this much later, each way. It limits no connection's throughput below 64 MiB in
// that time. A connection's beginning is not delayed, since it is the kernel that accepts.
func (p *Proxy) Delay(d time.Duration) { p.change(func() { p.delay = d }) }

// CutAfter resets the connection that carries the n-th byte from now on in this direction, of all connections together, right behind
// that byte. It does so once; a second call replaces the first.
func (p *Proxy) CutAfter(d Direction, n int64) { p.change(func() { p.cut, p.left = d, n }) }

// Connections is how many connections there are, and how many have been accepted so far.
func (p *Proxy) Connections() (open, accepted int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links) / 2, p.accepted
}

// Close resets all connections and returns when nothing of the proxy is left.
func (p *Proxy) Close() {
	p.Refuse()
	p.change(func() { p.closed = true })
	p.Cut()
	p.all.Wait()
}

// change does something under the lock and wakes every link.
func (p *Proxy) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) accept(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return // closed
		}
		p.all.Go(func() { p.serve(client) })
	}
}

func (p *Proxy) serve(client net.Conn) {
	p.mu.Lock()
	target, closed := p.target, p.closed
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), dialTime)
	defer cancel()
	var server net.Conn
	err := errors.New("closed")
	if !closed {
		server, err = (&net.Dialer{}).DialContext(ctx, "tcp", target)
	}
	if err != nil {
		abort(client) // as if nobody had listened; the kernel has said otherwise by now
		return
	}
	p.join(client, server)
}

// join carries bytes between the two until both directions have ended or the connection was cut.
func (p *Proxy) join(client, server net.Conn) {
	over, end := context.WithCancel(context.Background())
	reset := func() {
		end()
		abort(client)
		abort(server)
	}
	links := []*link{
		{p: p, direction: ToTarget, from: client, to: server, reset: reset, room: make(chan struct{}, 1), news: make(chan struct{}, 1)},
		{p: p, direction: ToClient, from: server, to: client, reset: reset, room: make(chan struct{}, 1), news: make(chan struct{}, 1)},
	}
	p.mu.Lock()
	p.accepted++
	for _, l := range links {
		p.links[l] = true
	}
	closed := p.closed
	p.mu.Unlock()
	if closed {
		reset()
	}
	var both, readers sync.WaitGroup
	for _, l := range links {
		readers.Go(func() { l.read(over) })
		both.Go(func() { l.deliver(over) })
	}
	both.Wait()
	end()
	_ = client.Close() // what was delivered arrives, unless it was reset
	_ = server.Close()
	readers.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range links {
		delete(p.links, l)
	}
}

// abort ends a connection so that the other side sees a reset rather than an end, where the transport knows one.
func abort(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // fails on one that is closed already
	}
	_ = c.Close()
}

// link is one direction of a connection.
type link struct {
	p         *Proxy
	direction Direction
	from, to  net.Conn
	reset     func() // ends the whole connection; may be called again
	room      chan struct{}
	news      chan struct{}
	stranded  bool // for good; under p.mu

	mu    sync.Mutex
	queue []chunk
	held  int // bytes in queue
}

// chunk is what was read at once, or how the stream ended.
type chunk struct {
	data []byte
	due  time.Time
	err  error
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// read takes what the sender writes.
func (l *link) read(over context.Context) {
	for {
		buf := make([]byte, chunkMax)
		n, err := l.from.Read(buf)
		l.p.mu.Lock()
		due := time.Now().Add(l.p.delay)
		l.p.mu.Unlock()
		l.mu.Lock()
		if n > 0 {
			l.queue = append(l.queue, chunk{data: buf[:n:n], due: due})
			l.held += n
		}
		if err != nil {
			l.queue = append(l.queue, chunk{due: due, err: err})
		}
		l.mu.Unlock()
		wake(l.news)
		if err != nil {
			return
		}
		for l.full() {
			select {
			case <-l.room:
			case <-over.Done():
				return
			}
		}
	}
}

func (l *link) full() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held >= queueMax
}

// deliver gives the receiver what is due.
func (l *link) deliver(over context.Context) {
	for {
		c, ok := l.next(over)
		if !ok {
			return
		}
		if c.err != nil {
			half, can := l.to.(interface{ CloseWrite() error })
			if !errors.Is(c.err, io.EOF) || !can || half.CloseWrite() != nil {
				l.reset()
			}
			return
		}
		for len(c.data) > 0 {
			n, cut, ok := l.allowed(over, len(c.data))
			if !ok {
				return
			}
			if _, err := l.to.Write(c.data[:n]); err != nil || cut {
				l.reset()
				return
			}
			c.data = c.data[n:]
		}
	}
}

// next waits for the next chunk and until it is due.
func (l *link) next(over context.Context) (chunk, bool) {
	for {
		l.mu.Lock()
		if len(l.queue) > 0 {
			c := l.queue[0]
			l.queue = l.queue[1:]
			l.held -= len(c.data)
			l.mu.Unlock()
			wake(l.room)
			if wait := time.Until(c.due); wait > 0 {
				timer := time.NewTimer(wait)
				defer timer.Stop()
				select {
				case <-timer.C:
				case <-over.Done():
					return chunk{}, false
				}
			}
			return l.passable(over, c)
		}
		l.mu.Unlock()
		select {
		case <-l.news:
		case <-over.Done():
			return chunk{}, false
		}
	}
}

// passable waits until the direction is not stalled; for ends of streams too.
func (l *link) passable(over context.Context, c chunk) (chunk, bool) {
	for {
		l.p.mu.Lock()
		stalled, changed := l.stranded || l.p.stalled&l.direction != 0, l.p.changed
		l.p.mu.Unlock()
		if !stalled {
			return c, true
		}
		select {
		case <-changed:
		case <-over.Done():
			return chunk{}, false
		}
	}
}

// allowed says how many of n bytes may go, and whether the connection is cut behind them.
func (l *link) allowed(over context.Context, n int) (allowed int, cut, ok bool) {
	if _, ok := l.passable(over, chunk{}); !ok {
		return 0, false, false
	}
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	if l.p.cut&l.direction == 0 {
		return n, false, true
	}
	allowed = int(min(int64(n), l.p.left))
	if l.p.left -= int64(allowed); l.p.left <= 0 {
		l.p.cut = 0
		return allowed, true, true
	}
	return allowed, false, true
}
