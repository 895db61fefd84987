package embedded

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/net/nettest"
)

// TestPipeIsAConnection is the conformance suite that the standard library's own pipes and sockets pass.
func TestPipeIsAConnection(t *testing.T) {
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		c1, c2 = pipe()
		return c1, c2, func() {
			c1.Close()
			c2.Close()
		}, nil
	})
}

// TestPipeKeepsEveryByte writes in pieces of all sizes around the buffer's, while the other end reads in others.
func TestPipeKeepsEveryByte(t *testing.T) {
	a, b := pipe()
	sent := make([]byte, 5*pipeBuffer+17)
	rand.Read(sent)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer a.Close()
		rest := sent
		for i := 0; len(rest) > 0; i++ {
			n := min([]int{1, 4, pipeBuffer - 1, 100, pipeBuffer, 3, pipeBuffer + 1, 2 * pipeBuffer}[i%8], len(rest))
			if m, err := a.Write(rest[:n]); err != nil || m != n {
				t.Errorf("expected to write %d bytes, but wrote %d, err %v", n, m, err)
				return
			}
			rest = rest[n:]
		}
	})
	var got []byte
	for i := 0; ; i++ {
		p := make([]byte, []int{4, 5000, 1, pipeBuffer, 7, 3 * pipeBuffer}[i%6])
		n, err := b.Read(p)
		got = append(got, p[:n]...)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Errorf("expected the end, but got %v", err)
			}
			break
		}
	}
	wg.Wait()
	if !bytes.Equal(sent, got) {
		t.Fatalf("expected the %d bytes that were sent, but got %d, or others", len(sent), len(got))
	}
}

// TestPipeWriterDoesNotWaitForItsReader is what sets it apart from net.Pipe: a broker that answers must not depend on a client
// that reads.
func TestPipeWriterDoesNotWaitForItsReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe()
		if _, err := a.Write(make([]byte, pipeBuffer)); err != nil {
			t.Fatal(err)
		}
		if err := a.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		n, err := a.Write([]byte("more than fits"))
		if n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != time.Second {
			t.Fatalf("expected the deadline after 1s, but got %d, %v after %v", n, err, time.Since(began))
		}
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Fatalf("expected a timeout, but got %v", err)
		}
		// A deadline that moves while a call waits counts from then on: later ones as well as earlier ones.
		if _, err := io.ReadFull(b, make([]byte, pipeBuffer)); err != nil {
			t.Fatal(err)
		}
		began = time.Now()
		_ = b.SetReadDeadline(began.Add(time.Hour))
		ended := make(chan error)
		go func() {
			_, err := b.Read(make([]byte, 1))
			ended <- err
		}()
		synctest.Wait()
		_ = b.SetReadDeadline(began.Add(time.Minute))
		synctest.Wait()
		_ = b.SetReadDeadline(began.Add(2 * time.Minute))
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != 2*time.Minute {
			t.Fatalf("expected the deadline after 2m, but got %v after %v", err, time.Since(began))
		}
		a.Close()
		b.Close()
	})
}

// TestDial speaks to the broker from within its process, and beside it over the socket, with one log for both.
func TestDial(t *testing.T) {
	b := open(t, Config{Topics: []Topic{{Name: "a", Partitions: 1}}})
	produce(t, producer(t, b.Addrs(), kgo.Dialer(b.Dial)), &kgo.Record{Topic: "a", Value: []byte("within")})
	produce(t, producer(t, b.Addrs()), &kgo.Record{Topic: "a", Value: []byte("beside")})
	conn, err := b.Dial(t.Context(), "tcp", b.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if conn.RemoteAddr().Network() != pipeNetwork {
		t.Fatalf("expected a connection without a socket, but got one of %s", conn.RemoteAddr().Network())
	}
	if end := b.Cluster().PartitionInfo("a", 0).HighWatermark; end != 2 {
		t.Fatalf("expected both records in the log, but it ends at %d", end)
	}
	closeBroker(t, b)
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("expected a closed broker to end its connections, but got %v", err)
	}
	if _, err := b.Dial(t.Context(), "tcp", b.Addrs()[0]); err == nil {
		t.Fatal("expected a closed broker to refuse connections, but it took one")
	}
}

// TestDialElsewhere is what makes Dial safe for every client: it knows its own address only.
func TestDialElsewhere(t *testing.T) {
	b := open(t, Config{})
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	conn, err := b.Dial(context.Background(), "tcp", other.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if conn.RemoteAddr().String() != other.Addr().String() {
		t.Fatalf("expected a connection with %s, but got one with %s", other.Addr(), conn.RemoteAddr())
	}
}
