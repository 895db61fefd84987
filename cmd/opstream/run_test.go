package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/projections/projector"
)

// program is the binary that the tests start, built once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "opstream-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "opstream")
	build := exec.Command("go", "build", "-o", path, ".") // it ends by itself, and all tests share it
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := program(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// process is a running opstream.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	url  string
	log  *strings.Builder
	done chan struct{}
	err  error
}

// spawn starts opstream and waits until it says that it runs.
func spawn(t testing.TB, args ...string) *process {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, log: &strings.Builder{}, done: make(chan struct{})}
	p.cmd = exec.Command(path, args...) // stopped by signal, which is what is tested
	p.cmd.Stderr = p.log
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	go func() {
		defer close(p.done)
		lines := bufio.NewScanner(out)
		once := sync.OnceFunc(func() { close(ready) })
		for lines.Scan() {
			if i := strings.Index(lines.Text(), "http://"); i >= 0 {
				p.url = strings.TrimSpace(lines.Text()[i:])
				once()
			}
		}
		p.err = p.cmd.Wait()
		once()
	}()
	t.Cleanup(func() { p.kill() })
	select {
	case <-ready:
	case <-time.After(60 * time.Second):
		t.Fatalf("expected opstream to say where it runs, but it did not within a minute: %s", p.log)
	}
	if p.url == "" {
		t.Fatalf("expected opstream to run, but it ended: %v\n%s", p.err, p.log)
	}
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // fails when it has ended, which is as good
	<-p.done
}

// stop ends it as an operator would, and returns how it exited.
func (p *process) stop() error {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return p.err
	case <-time.After(30 * time.Second):
		p.t.Fatalf("expected opstream to stop within 30 s of SIGTERM, but it did not\n%s", p.log)
		return nil
	}
}

// try asks the API, and decodes the answer into v.
func (p *process) try(path string, v any) error {
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, p.url+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s: %s", path, resp.Status, body)
	}
	return json.Unmarshal(body, v)
}

// freePort is an address where nobody listens, and which stays the test's own, also while a process is dead that listens there: a socket
// that is bound to it and does not listen keeps the kernel from giving the port to whoever asks for any, and from letting a connection
// come from there. Who asks for this very port gets it on Linux; elsewhere nobody would, so there it is not kept.
func freePort(t testing.TB) string {
	t.Helper()
	syscall.ForkLock.RLock()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() {
		if err := syscall.Close(fd); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	err = errors.Join(
		syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1),
		syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}),
	)
	if err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "linux" {
		end()
	}
	return fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
}

// TestFreePort guards against a port that somebody else gets between two lives of a process, which then cannot come back.
func TestFreePort(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("SKIPPED: only Linux lets somebody listen at an address that is kept")
	}
	address := freePort(t)
	others := map[string]bool{}
	for range 4 { // lives
		listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
		if err != nil {
			t.Fatalf("expected the port to be free for who asks for it, but: %v", err)
		}
		listener.Close()
		if conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("expected nobody to listen, but got %v, %v", conn, err)
		}
		for range 5000 { // of some seven thousand ports that the kernel chooses from
			other, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			others[other.Addr().String()] = true
			other.Close()
		}
	}
	if others[address] {
		t.Errorf("expected %s to be given to nobody else, but it was", address)
	}
}

// history is what the journal says of each operation.
type history struct {
	token      string
	sequence   operation.Place
	open       bool
	ends       int
	dispatches int
	status     operation.Status
}

// judge reads the whole journal and reports what no history may hold.
func judge(t testing.TB, journal projector.Journal) map[string]*history {
	t.Helper()
	ends, err := journal.Ends(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*history{}
	for p, end := range ends {
		running := map[string]operation.ID{}
		last := map[string]operation.Place{}
		states := map[operation.ID]*operation.State{}
		_, err := journal.Read(t.Context(), p, end, func(e projections.Entry) error {
			ev := &e.Event
			if !ev.Kind.Changes() {
				return nil
			}
			s := states[ev.ID]
			if s == nil {
				s = &operation.State{}
				states[ev.ID] = s
			}
			before := s.Status
			s.Apply(ev, e.Place)
			h := all[string(ev.ID)]
			if h == nil {
				h = &history{token: ev.Request.DependencyToken, sequence: e.Place}
				all[string(ev.ID)] = h
			}
			h.status = s.Status
			if before.Terminal() {
				t.Errorf("%s: event %s at %d/%d after it had ended", ev.ID, ev.Kind, p, e.Place)
			}
			switch {
			case ev.Kind == operation.Dispatched:
				if h.open {
					t.Errorf("%s: dispatched at %d/%d while an attempt was open", ev.ID, p, e.Place)
				}
				h.open = true
				h.dispatches++
				if h.token != "" {
					if other := running[h.token]; other != "" {
						t.Errorf("%s: dispatched while %s of the same token was out", ev.ID, other)
					}
					if h.sequence < last[h.token] {
						t.Errorf("%s: dispatched after a later operation of its token", ev.ID)
					}
					running[h.token], last[h.token] = ev.ID, h.sequence
				}
			case h.open && !s.Status.Locked():
				h.open = false
				if running[h.token] == ev.ID {
					delete(running, h.token)
				}
			}
			if s.Status.Terminal() {
				h.ends++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for id, h := range all {
		if h.ends > 1 {
			t.Errorf("%s: ended %d times", id, h.ends)
		}
	}
	return all
}

func TestKilledUnderLoadEveryOperationEndsOnceAndInOrder(t *testing.T) {
	const n, kills = 6000, 6
	dir, broker := t.TempDir(), freePort(t)
	args := []string{"dev", "--data", dir, "--kafka", broker, "--listen", "127.0.0.1:0", "--lease", "3s"}
	p := spawn(t, args...)
	client := (&serviceConfig{brokers: []string{broker}}).clientOptions()
	crm, err := producers.New(producers.Config{Brokers: []string{broker}, Source: "/test", Options: client, DeliveryTimeout: 2 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer crm.Close(context.WithoutCancel(t.Context()))
	requested := make(chan error, 1)
	go func() {
		for i := range n {
			q := &producers.Request{ID: fmt.Sprintf("op-%d", i), Organization: fmt.Sprintf("org-%d", i%5), Type: "noop"}
			if i%2 == 0 {
				q.DependencyToken = fmt.Sprintf("chain-%d", i%40)
			}
			if i%7 == 0 {
				q.Data = map[string]any{"sleepMs": 20}
			}
			for {
				err := crm.Request(t.Context(), q)
				if err == nil {
					break
				}
				if !errors.Is(err, producers.ErrRetry) || t.Context().Err() != nil {
					requested <- err
					return
				}
			}
		}
		requested <- nil
	}()

	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	chance := rand.New(rand.NewPCG(seed, 0))
	for range kills {
		<-after(time.Duration(200+chance.IntN(900)) * time.Millisecond) // the moment of death is what chance decides
		p.kill()
		p = spawn(t, args...)
	}
	if err := <-requested; err != nil {
		t.Fatal(err)
	}
	eventually(t, 90*time.Second, func() (bool, string) {
		var counts api.Counts
		if err := p.try("/v1/counts", &counts); err != nil {
			return false, err.Error()
		}
		succeeded := int64(0)
		for _, c := range counts.ByStatus {
			if c.Status == operation.StatusSucceeded.String() {
				succeeded = c.Count
			}
		}
		return succeeded == n, fmt.Sprintf("%+v", counts.ByStatus)
	})

	all := judge(t, projector.Journal{Client: client})
	repeated := 0
	for i := range n {
		h := all[fmt.Sprintf("op-%d", i)]
		if h == nil || h.status != operation.StatusSucceeded {
			t.Errorf("op-%d: expected it to succeed, but it is %+v", i, h)
		} else if h.dispatches > 1 {
			repeated++
		}
	}
	t.Logf("%d operations, %d of them in more than one attempt", n, repeated)
	if out, err := exec.CommandContext(t.Context(), must(program()), "verify", "--brokers", broker, "--database", filepath.Join(dir, databaseFile)).CombinedOutput(); err != nil {
		t.Errorf("opstream verify: %v\n%s", err, out)
	}
	if err := p.stop(); err != nil {
		t.Errorf("expected a clean stop, but got %v\n%s", err, p.log)
	}
}

func must(path string, err error) string {
	if err != nil {
		panic(err) // invariant: spawn has checked it
	}
	return path
}

// eventually asks until it is so: the program in another process gives no signal of its own.
func eventually(t testing.TB, within time.Duration, so func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		ok, what := so()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it was not so within %s: %s", within, what)
		}
		<-after(50 * time.Millisecond)
	}
}
