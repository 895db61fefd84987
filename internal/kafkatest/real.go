package kafkatest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Environment variables that decide about Apache Kafka in the tests. Without any of them the tests need nothing but Go.
const (
	// SeedsEnv names the brokers of a Kafka that runs, as host:port,host:port. Tests share it: their topics and groups have names
	// of their own.
	SeedsEnv = "OPSTREAM_TEST_KAFKA"
	// RealEnv set to 1 has each test binary start a Kafka of its own where SeedsEnv names none. What is missing for that makes the
	// tests be skipped.
	RealEnv = "OPSTREAM_REAL"
	// RequireEnv set to 1 is RealEnv, and what is missing makes the tests fail.
	RequireEnv = "OPSTREAM_REQUIRE_REAL"
)

const (
	startLimit = 10 * time.Minute // the first start fetches Kafka
	stopLimit  = time.Minute
	reachLimit = 10 * time.Second
)

// exitMissing is how deploy/local/kafka says that Java or Maven is missing.
const exitMissing = 3

// wanted tells whether somebody has asked for Apache Kafka, and whether tests must fail without it.
func wanted() (wanted, required bool) {
	required = os.Getenv(RequireEnv) == "1"
	return required || os.Getenv(RealEnv) == "1" || os.Getenv(SeedsEnv) != "", required
}

// leaveOut skips the test unless Apache Kafka was asked for.
func leaveOut(t testing.TB) {
	t.Helper()
	if yes, _ := wanted(); !yes {
		t.Skipf("NOT RUN on Apache Kafka: set %s=1 for one that is started for the test (needs Java and Maven, see deploy/README.md), or %s=host:port", RealEnv, SeedsEnv)
	}
}

// missing ends a test for which there is no Kafka: the one that was asked for.
func missing(t testing.TB, err error) {
	t.Helper()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == exitMissing {
		if _, required := wanted(); !required {
			t.Skipf("NOT RUN on Apache Kafka: %v", err)
		}
	}
	t.Fatalf("expected Apache Kafka, but there is none: %v", err)
}

// Real returns the seeds of an Apache Kafka that all tests of this binary share. The test is skipped where nobody has asked for one:
// see [SeedsEnv], [RealEnv], [RequireEnv].
func Real(t testing.TB) []string {
	t.Helper()
	leaveOut(t)
	seeds, err := shared()
	if err != nil {
		missing(t, err)
	}
	return seeds
}

// shared finds the Kafka that is there, or starts one, once.
var shared = sync.OnceValues(func() ([]string, error) {
	if seeds := os.Getenv(SeedsEnv); seeds != "" {
		return reach(strings.Split(seeds, ","))
	}
	l, err := startLocal("", 1) // it ends with this process
	if err != nil {
		return nil, err
	}
	return l.seeds, nil
})

// reach asks brokers for a sign of life.
func reach(seeds []string) ([]string, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(seeds...))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), reachLimit)
	defer cancel()
	if err := client.Ping(ctx); err != nil {
		return nil, fmt.Errorf("%s is %s, and nobody answers there; start that broker, or unset the variable: %w", SeedsEnv, strings.Join(seeds, ","), err)
	}
	return seeds, nil
}

// Local is an Apache Kafka of one test, whose brokers the test may kill.
type Local struct {
	dir   string
	seeds []string
	alive *os.File // the brokers live for as long as this is open
}

// StartLocal starts an Apache Kafka with 1 or 3 brokers, which ends with the test. The test is skipped where nobody has asked for
// one.
func StartLocal(t testing.TB, brokers int) *Local {
	t.Helper()
	return startFor(t, "", brokers)
}

// StartLocalIn is StartLocal in a folder that is there and empty. It is removed with the test, unless something is mounted there.
func StartLocalIn(t testing.TB, dir string, brokers int) *Local {
	t.Helper()
	return startFor(t, dir, brokers)
}

// StartLocalBehind is StartLocal with a broker for each of these addresses, host:port, that tells its clients to come there: to a proxy
// of the test, which goes on to [Local.Seeds].
func StartLocalBehind(t testing.TB, addresses ...string) *Local {
	t.Helper()
	return startFor(t, "", len(addresses), "--advertise", strings.Join(addresses, ","))
}

func startFor(t testing.TB, dir string, brokers int, more ...string) *Local {
	t.Helper()
	leaveOut(t)
	l, err := startLocal(dir, brokers, more...)
	if err != nil {
		missing(t, err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			l.log(t)
		}
		_, err := script(stopLimit, nil, "stop", "--kill", l.dir)
		if err != nil {
			t.Error(err)
		}
		_ = l.alive.Close() // the folder goes
	})
	return l
}

func startLocal(dir string, brokers int, more ...string) (*Local, error) {
	var err error
	if dir == "" {
		if dir, err = os.MkdirTemp("", "opstream-kafka-"); err != nil {
			return nil, err
		}
	}
	stdin, alive, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	args := append([]string{"start", "--while-stdin", "--brokers", strconv.Itoa(brokers)}, more...)
	out, err := script(startLimit, stdin, append(args, dir)...)
	_ = stdin.Close() // the guard has its own
	if err != nil {
		_ = alive.Close()
		return nil, err
	}
	l := &Local{dir: dir, seeds: strings.Split(strings.TrimSpace(out), ","), alive: alive}
	locals.Store(dir, l) // a file that is forgotten is closed by the collector, and the brokers would end
	return l, nil
}

var locals sync.Map

// Seeds are where the brokers listen, whatever they tell their clients. They stay the same for the whole life of the cluster.
func (l *Local) Seeds() []string { return l.seeds }

// Kill kills broker n, from 1 on, with SIGKILL, and returns when it has ended.
func (l *Local) Kill(n int) error {
	_, err := script(stopLimit, nil, "stop", "--kill", "--broker", strconv.Itoa(n), l.dir)
	return err
}

// Log is what broker n has logged in all its lives.
func (l *Local) Log(n int) (string, error) {
	text, err := os.ReadFile(filepath.Join(l.dir, fmt.Sprintf("broker-%d.log", n)))
	return string(text), err
}

// Runs tells whether broker n runs.
func (l *Local) Runs(n int) bool {
	out, _ := script(stopLimit, nil, "status", l.dir) // it fails when one does not run, and says so in its lines
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[0] == strconv.Itoa(n) {
			return fields[2] == "running"
		}
	}
	return false
}

// Stop stops broker n as an operator would.
func (l *Local) Stop(n int) error {
	_, err := script(stopLimit, nil, "stop", "--broker", strconv.Itoa(n), l.dir)
	return err
}

// Start starts broker n again, with the address and the data that it had, and returns when it serves.
func (l *Local) Start(n int) error {
	_, err := script(startLimit, nil, "start-broker", l.dir, strconv.Itoa(n))
	return err
}

// RestartCommand is a command that stops broker n, starts it again, and returns.
func (l *Local) RestartCommand(t testing.TB, n int) []string {
	t.Helper()
	path, err := scriptPath()
	if err != nil {
		t.Fatal(err)
	}
	return []string{"bash", "-c", `"$0" stop "$1" --broker "$2" && "$0" start-broker "$1" "$2"`, path, l.dir, strconv.Itoa(n)}
}

// log shows the end of each broker's log.
func (l *Local) log(t testing.TB) {
	names, _ := filepath.Glob(filepath.Join(l.dir, "broker-*.log"))
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
		t.Logf("the end of %s:\n%s", filepath.Base(name), bytes.Join(lines[max(0, len(lines)-40):], []byte("\n")))
	}
}

// script runs deploy/local/kafka and returns what it prints. Its errors hold what it has said.
func script(limit time.Duration, stdin *os.File, args ...string) (string, error) {
	path, err := scriptPath()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it cleans up
	cmd.WaitDelay = 30 * time.Second
	if stdin != nil {
		cmd.Stdin = stdin
	}
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("deploy/local/kafka %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(said.Bytes()))
	}
	return out.String(), nil
}

// scriptPath finds deploy/local/kafka from the folder of the package under test.
func scriptPath() (string, error) {
	at, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := at; ; dir = filepath.Dir(dir) {
		path := filepath.Join(dir, "deploy", "local", "kafka")
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("expected deploy/local/kafka in a folder above %s, but there is none; run the tests in a checkout", at)
		}
	}
}
