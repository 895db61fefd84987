package cockroach

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
)

// cut is what a proxy does with a COMMIT.
type cut int

const (
	cutNever  cut = iota
	cutBefore     // the server never hears of it
	cutAfter      // the server has done it, and its answer is lost
	cutInTime     // the server hears of it, and nobody waits for what it does
	cutSilent     // from here on neither side hears anything of the other, not even its end
)

// proxy is a way to a server that is cut when a COMMIT passes.
type proxy struct {
	url    string
	target string

	mu     sync.Mutex
	next   func() cut // what happens to the next COMMIT
	closed bool       // to new connections
	cuts   int

	over     chan struct{} // closed when the test ends
	stranded sync.WaitGroup
}

// newProxy stands before the server of a database.
func newProxy(t *testing.T, address string) *proxy {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{target: u.Host, next: func() cut { return cutNever }, over: make(chan struct{})}
	u.Host = listener.Addr().String()
	p.url = u.String()
	var open sync.WaitGroup
	open.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			open.Go(func() { p.serve(client) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		close(p.over)
		open.Wait()
		p.stranded.Wait()
	})
	return p
}

func (p *proxy) set(next func() cut) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = next
}

// shut lets nobody in any more, or again.
func (p *proxy) shut(closed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = closed
}

func (p *proxy) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cuts
}

// decide says what to do with a COMMIT.
func (p *proxy) decide() cut {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.next()
	if c != cutNever {
		p.cuts++
	}
	return c
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	p.mu.Lock()
	closed := p.closed
	p.mu.Unlock()
	if closed {
		return
	}
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer server.Close()
	var mu sync.Mutex
	lost := false // what the server says is not passed on
	done := make(chan struct{})
	heard := make(chan struct{}, 1)
	go func() {
		defer close(done)
		defer client.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := server.Read(buf)
			mu.Lock()
			drop := lost
			mu.Unlock()
			if drop {
				select {
				case heard <- struct{}{}:
				default:
				}
			} else if n > 0 {
				if _, err := client.Write(buf[:n]); err != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	defer func() {
		server.Close()
		<-done
	}()
	// The first message has no type: a length and the parameters.
	for first := true; ; first = false {
		message, err := readMessage(client, first)
		if err != nil {
			return
		}
		if !first && message[0] == 'Q' && bytes.EqualFold(bytes.TrimRight(message[5:], "\x00"), []byte("commit")) {
			switch p.decide() {
			case cutBefore:
				return
			case cutAfter:
				mu.Lock()
				lost = true
				mu.Unlock()
				if _, err := server.Write(message); err == nil {
					select {
					case <-heard:
					case <-done:
					}
				}
				return
			case cutInTime:
				_, _ = server.Write(message)
				return
			case cutSilent:
				mu.Lock()
				lost = true
				mu.Unlock()
				p.stranded.Go(func() { _, _ = io.Copy(io.Discard, client) })
				<-p.over
				return
			}
		}
		if _, err := server.Write(message); err != nil {
			return
		}
	}
}

// readMessage reads one message of PostgreSQL's protocol.
func readMessage(r io.Reader, first bool) ([]byte, error) {
	head := make([]byte, 5)
	if first {
		head = head[:4]
	}
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint32(head[len(head)-4:]))
	message := append(head, make([]byte, size-4)...)
	_, err := io.ReadFull(r, message[len(head):])
	return message, err
}
