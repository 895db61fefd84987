package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/projections"
)

// stopLimit bounds a stop while handlers are short; most take well under a second.
const stopLimit = 15 * time.Second

// stopLimitAll bounds the stop of a process with all roles, which end one after the other, when no broker answers.
const stopLimitAll = 25 * time.Second

// handedOver reads the journal for how long operations had to wait whose attempt had to end because a worker stopped: it was
// given back, or was on its way to a session that had just said goodbye, which is known to be lost after a moment. What nobody
// must wait for is the end of a lease.
func (in *installation) handedOver() (returned, lost int, longest time.Duration) {
	t := in.t
	t.Helper()
	journal := in.journal()
	ends, err := journal.Ends(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for p, end := range ends {
		out, back := map[operation.ID]operation.Time{}, map[operation.ID]operation.Time{}
		_, err := journal.Read(t.Context(), p, end, func(e projections.Entry) error {
			switch e.Event.Kind {
			case operation.LeaseWasLost:
				lost++
				if waited := e.Event.At.Sub(out[e.Event.ID]); waited > 8*time.Second {
					t.Errorf("%s: expected to wait for no lease after a clean stop, but attempt %d was lost after %s", e.Event.ID, e.Event.Attempt, waited)
				}
			case operation.Returned:
				returned++
				back[e.Event.ID] = e.Event.At
			case operation.Dispatched:
				if at, ok := back[e.Event.ID]; ok {
					longest = max(longest, e.Event.At.Sub(at))
				}
				delete(back, e.Event.ID)
				out[e.Event.ID] = e.Event.At
			case operation.PauseRequested, operation.Paused, operation.CancelRequested, operation.Canceled:
				delete(back, e.Event.ID) // it waits for somebody
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return returned, lost, longest
}

// stopsUnderLoad signals parts while operations run, and starts them again.
func stopsUnderLoad(in *installation, signals map[string]os.Signal, order ...string) {
	t := in.t
	seed := killSeed(t)
	stopWatching := in.watch(defaultLease)
	stop, loaded := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(loaded)
		in.load(seed, 200, stop)
	}()
	chance := rand.New(rand.NewPCG(seed, 0))
	for _, name := range order {
		<-after(time.Duration(200+chance.IntN(300)) * time.Millisecond) // the moment of the signal is what chance decides
		d := in.part(name)
		d.signal(signals[name])
		code, took := d.exits(stopLimit)
		if code != exitOK {
			t.Errorf("expected %s to exit with 0 after %s, but got %d\n%s", name, signals[name], code, d.log)
		}
		t.Logf("%s stopped after %s within %s", name, signals[name], took.Round(time.Millisecond))
		d.launch()
		d.up()
	}
	close(stop)
	<-loaded
	in.resumeAll()
	in.settled(60 * time.Second)
	stopWatching()
	in.judge()
	returned, lost, longest := in.handedOver()
	t.Logf("%d attempts were given back, the longest waited %s for the next; %d went to a session that had left", returned, longest, lost)
	if longest > 5*time.Second {
		t.Errorf("expected attempts that were given back to run elsewhere at once, but one waited for %s", longest)
	}
}

func TestDevStopsUnderLoad(t *testing.T) {
	t.Parallel()
	stopsUnderLoad(devInstallation(t, "--lease", "15s"), map[string]os.Signal{"dev": syscall.SIGTERM}, "dev", "dev")
}

func TestEveryRoleStopsUnderLoad(t *testing.T) {
	t.Parallel()
	stopsUnderLoad(splitInstallation(t, "--lease", "15s"), map[string]os.Signal{
		"broker": syscall.SIGINT, "scheduler-1": syscall.SIGTERM, "scheduler-2": hangUp(), "worker": syscall.SIGTERM, "api": syscall.SIGINT,
	}, "worker", "scheduler-1", "api", "scheduler-2", "broker")
}

// busyWorker is an installation whose worker runs handlers that take much longer than anybody waits for.
func busyWorker(t *testing.T, n int) (in *installation, d *daemon) {
	in = splitInstallation(t, "--lease", "15s")
	for i := range n {
		in.request(&producers.Request{ID: fmt.Sprint("long-", i), Organization: "o", Type: "noop", Data: map[string]any{"sleepMs": 100_000}})
	}
	in.requests.Wait()
	in.running(n)
	return in, in.part("worker")
}

// running waits until so many operations run.
func (in *installation) running(n int) {
	in.t.Helper()
	eventually(in.t, 30*time.Second, func() (bool, string) {
		counts, err := in.api.Counts(in.t.Context(), "", api.Call{})
		if err != nil {
			return false, err.Error()
		}
		for _, c := range counts.ByStatus {
			if c.Status == operation.StatusRunning.String() && c.Count == int64(n) {
				return true, ""
			}
		}
		return false, fmt.Sprintf("%+v", counts.ByStatus)
	})
}

// TestStopGivesBackWhatTakesTooLong also shows that what is given back runs elsewhere at once.
func TestStopGivesBackWhatTakesTooLong(t *testing.T) {
	t.Parallel()
	in, d := busyWorker(t, 64) // all its slots
	other := daemonOf(t, "worker-2", "serve", "--roles", "worker", "--brokers", in.broker, "--slots", "200")
	other.launch()
	other.up()
	began := time.Now()
	d.signal(syscall.SIGTERM)
	code, took := d.exits(20 * time.Second)
	if code != exitOK {
		t.Errorf("expected a clean stop, but got exit code %d\n%s", code, d.log)
	}
	in.running(64) // again, elsewhere
	t.Logf("the worker stopped after %s, its handlers ran elsewhere after %s", took.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	if returned, _, longest := in.handedOver(); returned < 64 || longest > 5*time.Second {
		t.Errorf("expected 64 attempts to be given back and to run elsewhere at once, but %d were, and one waited for %s", returned, longest)
	}
}

// hangUp is what a process gets when its terminal is gone. Where the tests run without one (nohup), so do their processes, and ignore it.
func hangUp() os.Signal {
	if signal.Ignored(syscall.SIGHUP) {
		return syscall.SIGTERM
	}
	return syscall.SIGHUP
}

func TestSecondSignalEndsTheProcessAtOnce(t *testing.T) {
	t.Parallel()
	const grace = 10 * time.Second // that handlers have after the first signal
	_, d := busyWorker(t, 3)
	began := time.Now()
	d.signal(syscall.SIGTERM)
	<-after(300 * time.Millisecond) // somebody grows impatient
	if d.ended() {
		t.Fatalf("expected the worker to wait for its handlers, but it has ended: %v\n%s", d.err, d.log)
	}
	// A signal that comes before the process has taken up the one before it is the same signal: who is impatient gives more of them.
	for !d.ended() && time.Since(began) < grace/2 {
		_ = d.cmd.Process.Signal(syscall.SIGTERM) // fails when it has ended, which is as good
		<-after(50 * time.Millisecond)
	}
	if !d.ended() {
		t.Fatalf("expected the second signal to end the worker long before its handlers have had their %s, but it did not\n%s", grace, d.log)
	}
	if code := d.cmd.ProcessState.ExitCode(); code == exitOK {
		t.Errorf("expected an exit code that tells of the haste, but got %d", code)
	}
}

// TestStopWithoutABroker guards against a process that can only be killed because somebody else has died.
func TestStopWithoutABroker(t *testing.T) {
	t.Parallel()
	in := splitInstallation(t)
	in.fill("before", 20)
	in.part("broker").kill()
	<-after(200 * time.Millisecond) // they find out
	for _, d := range in.parts[1:] {
		d.signal(syscall.SIGTERM)
	}
	for _, d := range in.parts[1:] {
		code, took := d.exits(30 * time.Second)
		t.Logf("%s exited with %d after %s", d.name, code, took.Round(time.Millisecond))
		if code != exitOK && code != exitFailed {
			t.Errorf("expected %s to exit with 0 or 1, but got %d\n%s", d.name, code, d.log)
		}
	}
}

// endedByDefault says whether the signal that ended the process came before the program had begun, and so did what it does to any.
func (d *daemon) endedByDefault() bool {
	return d.cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled()
}

// TestStopWhileItStarts signals at moments between the start and being ready.
func TestStopWhileItStarts(t *testing.T) {
	t.Parallel()
	chance := rand.New(rand.NewPCG(killSeed(t), 0))
	dir := t.TempDir()
	for range 8 {
		d := daemonOf(t, "dev", "dev", "--data", dir, "--kafka", "127.0.0.1:0", "--listen", "127.0.0.1:0")
		d.launch()
		<-after(time.Duration(chance.IntN(250)) * time.Millisecond) // the moment of the signal is what chance decides
		d.signal(syscall.SIGTERM)
		code, took := d.exits(stopLimit)
		if code != exitOK && !d.endedByDefault() || strings.Contains(d.log.String(), "opstream:") {
			t.Errorf("expected a clean stop, but got %d after %s\n%s", code, took, d.log)
		}
	}
	out, err := exec.CommandContext(t.Context(), must(program()), "verify", "--data", dir).CombinedOutput()
	if err != nil {
		t.Errorf("opstream verify: %v\n%s", err, out)
	}
}
