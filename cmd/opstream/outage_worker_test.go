package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opstream/opstream/consumers/worker"
	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/kafkatest"
	"github.com/opstream/opstream/producers"
	"github.com/opstream/opstream/projections"
	"github.com/opstream/opstream/schemas"
)

// loggedType is served by workers in processes of their own, whose handler keeps a file of what it does.
const loggedType = "logged"

// These say to this test binary that it is such a worker.
const (
	loggedFileEnv    = "OPSTREAM_LOGGED_FILE"
	loggedBrokersEnv = "OPSTREAM_LOGGED_BROKERS"
	loggedPrefixEnv  = "OPSTREAM_LOGGED_PREFIX"
)

const outageLease = 3 * time.Second

// logLine is one line of that file.
type logLine struct {
	ID      string    `json:"id"`
	Attempt int       `json:"attempt"`
	End     bool      `json:"end,omitempty"`
	At      time.Time `json:"at"`
}

// TestLoggingWorker is the process.
func TestLoggingWorker(t *testing.T) {
	name := os.Getenv(loggedFileEnv)
	if name == "" {
		t.Skip("it is run by TestPausedWorker and TestKafkaPausedWorker")
	}
	file, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	note := func(op *worker.Operation, end bool) error {
		line, err := json.Marshal(logLine{string(op.ID), int(op.Attempt), end, time.Now()})
		if err == nil {
			_, err = file.Write(append(line, '\n'))
		}
		return err
	}
	handler := func(ctx context.Context, op *worker.Operation) (any, error) {
		if err := note(op, false); err != nil {
			return nil, err
		}
		var data struct{ SleepMs int }
		err := op.Decode(&data)
		select {
		case <-after(time.Duration(data.SleepMs) * time.Millisecond): // the work
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		return nil, errors.Join(err, note(op, true))
	}
	brokers := strings.Split(os.Getenv(loggedBrokersEnv), ",")
	w, err := worker.New(worker.Config{
		Brokers: brokers, Topics: schemas.Topics{Prefix: os.Getenv(loggedPrefixEnv)}, Opts: (&serviceConfig{brokers: brokers}).clientOptions(),
		Lease: outageLease, Slots: 16, Handlers: map[string]worker.Handler{loggedType: worker.HandlerFunc(handler)},
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	fmt.Println("opstream runs a worker that logs.")
	if err := w.Run(ctx); err != nil {
		t.Fatal(err)
	}
	os.Exit(exitOK) // TestMain would look for the program, which this process has not built
}

// loggingWorker is such a process, and what it has logged.
type loggingWorker struct {
	*daemon
	file string
}

func (in *installation) loggingWorker(name string) *loggingWorker {
	w := &loggingWorker{daemon: daemonOf(in.t, name), file: filepath.Join(in.t.TempDir(), "handled")}
	cmd := exec.Command(os.Args[0], "-test.run=^TestLoggingWorker$") // ended by signals, which is what is tested
	prefix := in.topics.Prefix
	cmd.Env = append(os.Environ(), loggedFileEnv+"="+w.file, loggedBrokersEnv+"="+in.broker, loggedPrefixEnv+"="+prefix)
	w.launchCommand(cmd)
	w.up()
	in.parts = append(in.parts, w.daemon)
	return w
}

// lines is what the handler has logged so far.
func (w *loggingWorker) lines() []logLine {
	w.t.Helper()
	file, err := os.Open(w.file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	defer file.Close()
	var all []logLine
	for scan := bufio.NewScanner(file); scan.Scan(); {
		var line logLine
		if err := json.Unmarshal(scan.Bytes(), &line); err != nil {
			w.t.Fatalf("%s: %v", w.name, err)
		}
		all = append(all, line)
	}
	return all
}

// open is what has begun and not ended, by operation.
func (w *loggingWorker) open() map[string]int {
	open := map[string]int{}
	for _, l := range w.lines() {
		if l.End && open[l.ID] == l.Attempt {
			delete(open, l.ID)
		} else if !l.End {
			open[l.ID] = l.Attempt
		}
	}
	return open
}

// frozen is one pause of a worker: what it does after it has woken must belong to a session that began after that.
type frozen struct {
	w             *loggingWorker
	paused, woken time.Time
}

// pausedWorker stops workers in the middle of their work with SIGSTOP, for longer than their lease, and wakes them. What they had begun
// is run elsewhere, once; and they begin nothing any more that was given to the session that they had.
func pausedWorker(in *installation) {
	t := in.t
	length := max(outageTime(t), 2*outageLease)
	first, second := in.loggingWorker("logging-1"), in.loggingWorker("logging-2")
	var pauses []frozen
	in.besides = func() { in.judgeLogs(pauses, first, second) }
	in.outage(func(m *pulse) {
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for i := 0; !isClosed(stop); i++ {
				in.ask(&producers.Request{
					ID: fmt.Sprintf("logged-%d", i), Organization: "o", Type: loggedType, Data: map[string]any{"sleepMs": i % 10 * 40},
					Retry: &producers.RetryPolicy{MaxAttempts: 1000, Initial: 50 * time.Millisecond, Max: time.Second, Multiplier: 2},
				}, func() {})
				<-after(20 * time.Millisecond)
			}
		}()
		defer func() {
			close(stop)
			<-stopped
		}()
		for i, pair := range [][2]*loggingWorker{{first, second}, {second, first}, {first, second}} {
			victim, other := pair[0], pair[1]
			eventually(t, time.Minute, func() (bool, string) { // it is at work
				n := len(victim.open())
				return n >= 3, fmt.Sprintf("%s has only %d handlers running\n%s", victim.name, n, victim.log)
			})
			victim.signal(syscall.SIGSTOP)
			paused := time.Now()
			// The system stops a process a moment after it was told to: what it has begun and ended until then is settled behind the pause.
			<-after(length)
			left := victim.open()
			var took time.Duration
			eventually(t, 90*time.Second, func() (bool, string) {
				run := map[string]time.Time{}
				for _, l := range other.lines() {
					if l.End && l.Attempt > left[l.ID] {
						run[l.ID] = l.At
					}
				}
				for id, attempt := range left {
					if run[id].IsZero() {
						return false, fmt.Sprintf("%s had begun attempt %d of %s when it was stopped, and no later one has run elsewhere", victim.name, attempt, id)
					}
					took = max(took, run[id].Sub(paused))
				}
				return true, ""
			})
			victim.signal(syscall.SIGCONT)
			woken := time.Now()
			pauses = append(pauses, frozen{victim, paused, woken})
			var again time.Duration
			eventually(t, time.Minute, func() (bool, string) { // a new session
				lines := victim.lines()
				last := lines[len(lines)-1]
				again = last.At.Sub(woken)
				return !last.End && again > 0, victim.name + " has begun nothing since it was woken"
			})
			row(t, fmt.Sprintf("worker paused %s (%d)", woken.Sub(paused).Round(time.Second), i+1),
				"%s; %d attempts under way, all run elsewhere %s after the pause began; woken, it begins its next %s later",
				m.between(paused, woken), len(left), took.Round(time.Millisecond), again.Round(time.Millisecond))
			in.alive()
		}
	})
}

// judgeLogs holds what the handlers have logged against the journal.
func (in *installation) judgeLogs(pauses []frozen, workers ...*loggingWorker) {
	t := in.t
	t.Helper()
	sessions := map[string]operation.SessionID{} // by operation and attempt
	lost := 0
	run := func(id string, attempt int) string { return fmt.Sprintf("%s/%d", id, attempt) }
	journal := in.journal()
	ends, err := journal.Ends(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for p, end := range ends {
		if _, err := journal.Read(t.Context(), p, end, func(e projections.Entry) error {
			switch e.Event.Kind {
			case operation.Dispatched:
				sessions[run(string(e.Event.ID), int(e.Event.Attempt))] = e.Event.Session
			case operation.LeaseWasLost:
				lost++
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	starts := map[string]string{} // by operation and attempt, the worker
	began := map[operation.SessionID]logLine{}
	for _, w := range workers {
		for _, l := range w.lines() {
			if l.End {
				continue
			}
			key := run(l.ID, l.Attempt)
			session := sessions[key]
			if session == "" {
				t.Errorf("%s: attempt %s was run, but no event of the journal dispatched it", w.name, key)
			}
			if starts[key] != "" {
				t.Errorf("attempt %s was run by %s and by %s", key, starts[key], w.name)
			}
			starts[key] = w.name
			if began[session].ID == "" {
				began[session] = l
			}
			for _, p := range pauses {
				if p.w == w && l.At.After(p.woken) && began[session].At.Before(p.paused) {
					t.Errorf("%s: attempt %s of session %s was begun %s after the worker was woken, but that session had lost its lease",
						w.name, key, session, l.At.Sub(p.woken))
				}
			}
		}
	}
	t.Logf("%d attempts logged, in %d sessions, %d attempts lost with their lease", len(starts), len(began), lost)
	if lost == 0 || len(began) < 2+len(pauses) {
		t.Errorf("expected a lost lease and a new session for each of %d pauses, but there were %d lost attempts and %d sessions", len(pauses), lost, len(began))
	}
}

func TestPausedWorker(t *testing.T) {
	t.Parallel()
	pausedWorker(splitInstallation(t))
}

func TestKafkaPausedWorker(t *testing.T) {
	pausedWorker(kafkaInstallation(t, kafkatest.OnReal(t, kafkatest.Real(t))))
}
