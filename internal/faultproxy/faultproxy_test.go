package faultproxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// patience bounds every wait for something that must come.
const patience = 20 * time.Second

// echo is a server that sends back what it gets, and ends its side when the client does.
func echo(t *testing.T) (address string, got func() int64) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	var total int64
	all.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				buf := make([]byte, 1<<16)
				for {
					n, err := c.Read(buf)
					mu.Lock()
					total += int64(n)
					mu.Unlock()
					if _, failed := c.Write(buf[:n]); err != nil || failed != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		all.Wait()
	})
	return listener.Addr().String(), func() int64 {
		mu.Lock()
		defer mu.Unlock()
		return total
	}
}

func proxy(t *testing.T, target string) *Proxy {
	t.Helper()
	p, err := Listen(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func dial(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatalf("write %q: %v", text, err)
	}
}

func hears(t *testing.T, c net.Conn, text string) {
	t.Helper()
	buf := make([]byte, len(text))
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != text {
		t.Fatalf("expected to hear %q, but got %q, %v", text, buf, err)
	}
}

// cut expects a connection to end without an end of the stream, after some bytes.
func cut(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got, err := io.ReadAll(c)
	if string(got) != want || err == nil || isTimeout(err) {
		t.Errorf("expected the connection to be reset after %q, but got %q, %v", want, got, err)
	}
}

func TestForwardsBothWaysAndTheEnd(t *testing.T) {
	target, _ := echo(t)
	p := proxy(t, target)
	c := dial(t, p)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // more than any buffer between
	written := make(chan error, 1)
	go func() {
		_, err := c.Write(big)
		written <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
	}()
	got, err := io.ReadAll(c)
	if err := errors.Join(err, <-written); err != nil || !bytes.Equal(got, big) {
		t.Errorf("expected the same %d bytes and an end, but got %d bytes, %v", len(big), len(got), err)
	}
	if _, accepted := p.Connections(); accepted != 1 {
		t.Errorf("expected one connection, but got %d", accepted)
	}
}

func TestRefuse(t *testing.T) {
	target, _ := echo(t)
	p := proxy(t, target)
	c := dial(t, p)
	send(t, c, "a")
	hears(t, c, "a")
	p.Refuse()
	p.Refuse() // is no fault
	if _, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", p.Address()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("expected a refusal, but got %v", err)
	}
	send(t, c, "b") // the connections that are there go on
	hears(t, c, "b")
	for range 2 {
		if err := p.Admit(); err != nil {
			t.Fatal(err)
		}
	}
	c = dial(t, p)
	send(t, c, "c")
	hears(t, c, "c")
}

func TestCut(t *testing.T) {
	target, _ := echo(t)
	p := proxy(t, target)
	var all []net.Conn
	for range 3 {
		c := dial(t, p)
		send(t, c, "a")
		hears(t, c, "a")
		all = append(all, c)
	}
	if n := p.Cut(); n != 3 {
		t.Errorf("expected 3 connections to be cut, but it was %d", n)
	}
	for _, c := range all {
		cut(t, c, "")
	}
	c := dial(t, p)
	send(t, c, "b")
	hears(t, c, "b")
}

func TestTargetThatIsNotThere(t *testing.T) {
	gone, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	p := proxy(t, gone.Addr().String())
	if c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", p.Address()); err == nil { // the reset may come before that
		defer c.Close()
		cut(t, c, "")
	}
	target, _ := echo(t)
	p.SetTarget(target)
	c := dial(t, p)
	send(t, c, "a")
	hears(t, c, "a")
}

// TestStall holds back one direction, then both, and sees by the other one, and by the target, that nothing passes.
func TestStall(t *testing.T) {
	target, got := echo(t)
	p := proxy(t, target)
	c := dial(t, p)
	send(t, c, "a")
	hears(t, c, "a")
	p.Stall(ToClient)
	send(t, c, "bc")
	for got() < 3 { // the target has it and has answered
		// sleep: the target gives no signal
		time.Sleep(time.Millisecond)
	}
	silent(t, c)
	late := dial(t, p) // is accepted
	send(t, late, "x")
	silent(t, late)
	p.Stall(ToTarget)
	p.Resume(ToClient)
	hears(t, c, "bc")
	hears(t, late, "x")
	send(t, c, "de")
	silent(t, c)
	if n := got(); n != 4 {
		t.Errorf("expected the target to have 4 bytes, but it has %d", n)
	}
	p.Resume(Both)
	hears(t, c, "de")
	p.Stall(Both)
	if err := c.(*net.TCPConn).CloseWrite(); err != nil { // an end is not told either
		t.Fatal(err)
	}
	silent(t, c)
	p.Cut()
	cut(t, c, "")
}

func TestStrand(t *testing.T) {
	target, _ := echo(t)
	p := proxy(t, target)
	old := dial(t, p)
	send(t, old, "a")
	hears(t, old, "a")
	if n := p.Strand(); n != 1 {
		t.Errorf("expected one connection to be stranded, but it was %d", n)
	}
	send(t, old, "b")
	silent(t, old)
	c := dial(t, p)
	send(t, c, "c")
	hears(t, c, "c")
	p.Resume(Both) // is no help
	silent(t, old)
	p.Cut()
	cut(t, old, "")
}

// silent expects to hear nothing for a moment.
func silent(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); err == nil || !isTimeout(err) {
		t.Errorf("expected to hear nothing, but got %d bytes, %v", n, err)
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func TestCutAfter(t *testing.T) {
	target, got := echo(t)
	p := proxy(t, target)
	for _, c := range []struct {
		direction Direction
		want      string
		arrives   int64
	}{
		{ToClient, "abcd", 10},
		{ToTarget, "", 4},
	} {
		before := got()
		conn := dial(t, p)
		send(t, conn, "1")
		hears(t, conn, "1")
		p.CutAfter(c.direction, 4)
		send(t, conn, "abcdefghij")
		text, err := io.ReadAll(conn)
		if err == nil || isTimeout(err) {
			t.Errorf("expected a reset, but got %q, %v", text, err)
		}
		// A reset may overtake what was delivered before it; more than that cannot come.
		if !bytes.HasPrefix([]byte("abcd"), text) {
			t.Errorf("expected no more than %q, but got %q", "abcd", text)
		}
		if n := got() - before - 1; n > c.arrives {
			t.Errorf("expected the target to get %d bytes at most, but it got %d", c.arrives, n)
		}
	}
	c := dial(t, p) // once
	send(t, c, "abcdefghij")
	hears(t, c, "abcdefghij")
}

// TestDelay is in virtual time: every byte arrives after the delay, not sooner and not later, however many are under way.
func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const delay, step, n = 100 * time.Millisecond, time.Millisecond, 500
		p := &Proxy{changed: make(chan struct{}), links: map[*link]bool{}}
		p.Delay(delay)
		client, outside := net.Pipe()
		server, inside := net.Pipe()
		joined := make(chan struct{})
		go func() {
			defer close(joined)
			p.join(outside, inside)
		}()
		began := time.Now()
		go func() {
			for i := range n {
				_, _ = client.Write([]byte{byte(i)}) // a failure is seen by the reader
				time.Sleep(step)
			}
		}()
		for i := range n {
			b := make([]byte, 1)
			if _, err := io.ReadFull(server, b); err != nil || b[0] != byte(i) {
				t.Fatalf("expected byte %d, but got %v, %v", i, b, err)
			}
			if took, want := time.Since(began), delay+time.Duration(i)*step; took != want {
				t.Fatalf("expected byte %d after %s, but it took %s", i, want, took)
			}
		}
		began = time.Now()
		go func() { _, _ = server.Write([]byte("x")) }() // the same
		if _, err := io.ReadFull(client, make([]byte, 1)); err != nil || time.Since(began) != delay {
			t.Errorf("expected the way back to take %s too, but it took %s, %v", delay, time.Since(began), err)
		}
		p.Cut()
		<-joined
	})
}

// TestConcurrentUse does everything at once; the race detector and the end of all connections are the judges.
func TestConcurrentUse(t *testing.T) {
	target, _ := echo(t)
	p := proxy(t, target)
	stop := make(chan struct{})
	var clients, faults sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", p.Address())
				if err != nil {
					continue // refused just now
				}
				_ = c.SetDeadline(time.Now().Add(50 * time.Millisecond)) // it may be stalled
				_, _ = c.Write([]byte("hello"))
				_, _ = io.ReadFull(c, make([]byte, 5)) // it may be cut
				c.Close()
			}
		})
	}
	for _, f := range []func(){
		func() { p.Stall(Both); p.Resume(Both) },
		func() { p.Stall(ToClient); p.Resume(ToClient) },
		func() { p.Cut() },
		func() { p.Strand() },
		func() { p.CutAfter(ToTarget, 3) },
		func() { p.Delay(time.Millisecond); p.Delay(0) },
		func() {
			p.Refuse()
			if err := p.Admit(); err != nil {
				t.Error(err)
			}
		},
		func() { p.SetTarget(target); p.Connections() },
	} {
		faults.Go(func() {
			for range 100 {
				f()
			}
		})
	}
	faults.Wait()
	close(stop)
	clients.Wait()
	p.CutAfter(ToTarget, 1<<40)
	c := dial(t, p)
	send(t, c, "still here")
	hears(t, c, "still here")
	p.Close()
	if open, _ := p.Connections(); open != 0 {
		t.Errorf("expected no connection after Close, but there are %d", open)
	}
}
