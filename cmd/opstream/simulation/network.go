package simulation

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// network connects hosts with the broker.
type network struct {
	virtual *kfake.VirtualNetwork
	down    chan struct{} // closed at the end of the world
}

var (
	errCut     = errors.New("simulation: the network of this host is cut")
	errRefused = errors.New("simulation: the connection is refused")
)

// host is one life of one process: its network, as far as faults are concerned.
type host struct {
	name string
	net  *network
	lag  func() time.Duration // of what it sends
	fell func(late bool)      // hears that a request has made it fall

	mu     sync.Mutex
	dead   bool          // nothing is heard any more
	cut    bool          // connections break, and new ones are refused
	closed chan struct{} // while what it sends and hears is held up; else nil
	conns  map[*conn]struct{}
	served map[*served]struct{} // where it is the server
	armed  []netFault
	gone   chan struct{} // closed when it dies
	once   sync.Once     // closes gone

	stopping chan struct{} // closed when the process was asked to end

	lost []time.Duration // when its sessions lost their leases; the history's mutex guards it
}

// netFault is something that happens once to a request of one kind.
type netFault struct {
	key  int16 // of the request
	how  netFaultKind
	skip int // so many requests go through before
}

type netFaultKind uint8

const (
	loseAnswer  netFaultKind = iota // the broker does the work, and the connection breaks before the answer
	loseRequest                     // the connection breaks before the broker hears it
	delayIt                         // the request takes seconds
	fallBefore                      // the process falls before the request leaves
	fallAfter                       // the process falls when the request has left
)

func (n *network) host(name string, lag func() time.Duration) *host {
	return &host{name: name, net: n, lag: lag, conns: map[*conn]struct{}{}, served: map[*served]struct{}{}, gone: make(chan struct{}), stopping: make(chan struct{})}
}

// dial is for kgo.Dialer.
func (h *host) dial(ctx context.Context, _, address string) (net.Conn, error) {
	h.mu.Lock()
	refused := h.dead || h.cut
	h.mu.Unlock()
	if refused {
		return nil, errRefused
	}
	// A host that is held up gets its connection, too: a client may wait for one with a mutex held, which stops the bubble's clock.
	inner, err := h.net.virtual.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	near, far := net.Pipe()
	c := &conn{Conn: near, host: h, far: far, inner: inner, wake: make(chan struct{}, 1), ended: make(chan struct{})}
	h.mu.Lock()
	if h.dead || h.cut {
		h.mu.Unlock()
		c.breakOff()
		return nil, errRefused
	}
	h.conns[c] = struct{}{}
	h.mu.Unlock()
	go c.sending()
	go c.hearing()
	return c, nil
}

// pass waits while the host is held up. It is false when there is no more to wait for.
func (h *host) pass(until <-chan struct{}) bool {
	for {
		h.mu.Lock()
		gate := h.closed
		h.mu.Unlock()
		if gate == nil {
			return true
		}
		select {
		case <-gate:
		case <-until:
			return false
		case <-h.net.down:
			return false
		}
	}
}

// hold keeps everything that the host sends and hears, until release.
func (h *host) hold() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed == nil {
		h.closed = make(chan struct{})
	}
}

func (h *host) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed != nil {
		close(h.closed)
		h.closed = nil
	}
}

// sever breaks all connections and refuses new ones, until mend. What is under way is lost.
func (h *host) sever() {
	h.mu.Lock()
	h.cut = true
	h.mu.Unlock()
	h.drop()
}

func (h *host) mend() {
	h.mu.Lock()
	h.cut = false
	h.mu.Unlock()
}

func (h *host) drop() {
	h.mu.Lock()
	all := make([]*conn, 0, len(h.conns))
	for c := range h.conns {
		all = append(all, c)
	}
	h.mu.Unlock()
	for _, c := range all {
		c.breakOff()
	}
	h.refuse()
}

// refuse breaks the connections that others have to this host.
func (h *host) refuse() {
	h.mu.Lock()
	all := slices.Collect(maps.Keys(h.served))
	h.mu.Unlock()
	for _, c := range all {
		_ = c.Close() // it is only a pipe
	}
}

// die ends the host. With late, what it has sent and the network still has is kept, and arrives after release.
func (h *host) die(late bool) {
	if late {
		h.hold()
	}
	h.mu.Lock()
	if h.dead {
		h.mu.Unlock()
		return
	}
	h.dead = true
	h.exit()
	all := make([]*conn, 0, len(h.conns))
	for c := range h.conns {
		all = append(all, c)
	}
	h.mu.Unlock()
	for _, c := range all {
		if late {
			_ = c.Close() // the client's end; the rest is on its way
		} else {
			c.breakOff()
		}
	}
	h.refuse()
}

// exit ends what runs in the process for its own sake, which is handlers.
func (h *host) exit() { h.once.Do(func() { close(h.gone) }) }

// arm has a fault happen to the next request of its kind.
func (h *host) arm(f netFault) {
	h.mu.Lock()
	h.armed = append(h.armed, f)
	h.mu.Unlock()
}

func (h *host) disarm() {
	h.mu.Lock()
	h.armed = nil
	h.mu.Unlock()
}

func (h *host) fault(key int16) (netFault, bool) {
	for i, f := range h.armed {
		if f.key == key && f.skip > 0 {
			h.armed[i].skip--
			continue
		}
		if f.key == key {
			h.armed = append(h.armed[:i:i], h.armed[i+1:]...)
			return f, true
		}
	}
	return netFault{}, false
}

// conn is a connection of a host: what the client reads and writes is one end of a pipe, and two pumps carry it on as the
// host's network allows. Like a socket, it delivers what was written before it was closed.
type conn struct {
	net.Conn          // the client's end
	far      net.Conn // of the pipe
	inner    net.Conn // to the broker
	host     *host

	mu     sync.Mutex
	queue  []parcel
	due    time.Time // of the last parcel
	shut   bool      // the client will write no more
	deaf   bool      // no more answers
	broken bool

	wake  chan struct{}
	ended chan struct{} // closed when broken
}

// parcel is one write of the client: a request, as the Kafka client writes them whole.
type parcel struct {
	bytes []byte
	due   time.Time
	last  netFaultKind
	fault bool
}

// Write takes everything at once, as a socket with a large buffer does.
func (c *conn) Write(b []byte) (int, error) {
	p := parcel{bytes: append([]byte(nil), b...), due: time.Now().Add(c.host.lag())}
	c.host.mu.Lock()
	dead := c.host.dead
	if len(b) >= 6 && !dead {
		if f, ok := c.host.fault(int16(b[4])<<8 | int16(b[5])); ok {
			p.fault, p.last = true, f.how
		}
	}
	fell := c.host.fell
	c.host.mu.Unlock()
	if p.fault && p.last == fallBefore {
		c.host.die(false)
		go fell(false)
		return 0, errCut
	}
	if err := c.take(p, dead); err != nil {
		return 0, err
	}
	if p.fault && p.last == fallAfter {
		c.host.die(true)
		go fell(true)
		return 0, errCut
	}
	return len(b), nil
}

// take puts a parcel on its way.
func (c *conn) take(p parcel, dead bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken || c.shut || dead {
		return errCut
	}
	if p.fault && p.last == delayIt {
		p.due = p.due.Add(time.Duration(1+len(p.bytes)%7) * time.Second)
	}
	if p.due.Before(c.due) {
		p.due = c.due
	}
	c.due = p.due
	c.queue = append(c.queue, p)
	c.signal()
	return nil
}

func (c *conn) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Close ends the client's end. What was written goes on its way.
func (c *conn) Close() error {
	c.mu.Lock()
	c.shut = true
	c.signal()
	c.mu.Unlock()
	return c.Conn.Close()
}

// breakOff ends the connection at once, with all that is under way.
func (c *conn) breakOff() {
	c.mu.Lock()
	if c.broken {
		c.mu.Unlock()
		return
	}
	c.broken = true
	c.queue = nil
	close(c.ended)
	c.mu.Unlock()
	c.Conn.Close()
	c.far.Close()
	c.inner.Close()
	c.host.mu.Lock()
	delete(c.host.conns, c)
	c.host.mu.Unlock()
}

// sending carries what the client writes to the broker.
func (c *conn) sending() {
	defer c.breakOff()
	for {
		c.mu.Lock()
		var p parcel
		has := len(c.queue) > 0
		if has {
			p = c.queue[0]
		}
		shut := c.shut
		c.mu.Unlock()
		if !has {
			if shut {
				c.linger()
				return
			}
			select {
			case <-c.wake:
			case <-c.ended:
				return
			case <-c.host.net.down:
				return
			}
			continue
		}
		if !c.until(p.due) || !c.host.pass(c.ended) {
			return
		}
		if p.fault && p.last == loseRequest {
			return
		}
		if p.fault && p.last == loseAnswer {
			c.mu.Lock()
			c.deaf = true
			c.mu.Unlock()
		}
		if _, err := c.inner.Write(p.bytes); err != nil {
			return
		}
		c.mu.Lock()
		if len(c.queue) > 0 {
			c.queue = c.queue[1:]
		}
		c.mu.Unlock()
		if p.fault && p.last == loseAnswer {
			c.linger()
			return
		}
	}
}

// linger gives the broker time to do what was asked last.
func (c *conn) linger() { c.until(time.Now().Add(time.Second)) }

// until waits; false when the connection or the world ends before.
func (c *conn) until(due time.Time) bool {
	wait := time.Until(due)
	if wait <= 0 {
		return true
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.ended:
	case <-c.host.net.down:
	}
	return false
}

// hearing carries the broker's answers to the client, or away when it does not listen any more.
func (c *conn) hearing() {
	buffer := make([]byte, 16<<10)
	away := false
	for {
		n, err := c.inner.Read(buffer)
		if n > 0 && !away {
			c.mu.Lock()
			away = c.deaf || c.shut
			c.mu.Unlock()
			if !away && c.host.pass(c.ended) {
				_, werr := c.far.Write(buffer[:n])
				away = werr != nil
			}
		}
		if err != nil {
			c.breakOff()
			return
		}
	}
}
