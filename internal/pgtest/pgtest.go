// Package pgtest gives a test a database of its own in a real PostgreSQL or CockroachDB.
//
// A PostgreSQL is started once for a test binary, by deploy/local/postgres, and ends with it however it ends: the script
// waits for the end of a pipe whose other end only the test binary holds. Set OPSTREAM_TEST_POSTGRES to the URL of a server
// to use that one. Without any the test is skipped, and says what is missing; with OPSTREAM_REQUIRE_REAL=1, which
// is how the project checks itself, it fails.
//
// A CockroachDB is used when there is one: at the URL in OPSTREAM_TEST_COCKROACH, or the binary that COCKROACH_BINARY names.
package pgtest

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/cockroach-go/v2/testserver"
	"github.com/jackc/pgx/v5"
)

// The environment.
const (
	EnvPostgres  = "OPSTREAM_TEST_POSTGRES"
	EnvCockroach = "OPSTREAM_TEST_COCKROACH"
	envBinary    = "COCKROACH_BINARY"
	envRequire   = "OPSTREAM_REQUIRE_REAL"
)

// serverTime is how long a server may take to start; the first time its package may have to be installed.
const serverTime = 3 * time.Minute

// Postgres returns the URL of an empty database, which goes with the test.
func Postgres(t testing.TB) string {
	t.Helper()
	server, err := postgresServer()
	if err != nil {
		missing(t, true, "PostgreSQL", "start one and set "+EnvPostgres+" to its URL, or see what deploy/local/postgres says", err)
	}
	return create(t, server, "DROP DATABASE %s WITH (FORCE)")
}

// errNoCockroach: no test can install it.
var errNoCockroach = errors.New("neither " + EnvCockroach + " nor " + envBinary + " is set")

// Cockroach returns the URL of an empty database, which goes with the test. CockroachDB cannot be installed from any registry
// of packages, so its absence is a skip even where real components are required.
func Cockroach(t testing.TB) string {
	t.Helper()
	server, err := cockroachServer()
	if err != nil {
		missing(t, !errors.Is(err, errNoCockroach), "CockroachDB", "set "+envBinary+" to the path of a cockroach binary of version 23.2 or newer, or "+EnvCockroach+" to a server's URL", err)
	}
	return create(t, server, "DROP DATABASE %s CASCADE")
}

// missing ends a test that has no server.
func missing(t testing.TB, required bool, what, how string, err error) {
	t.Helper()
	if required && os.Getenv(envRequire) == "1" {
		t.Fatalf("expected a real %s, which %s=1 requires, but: %v; %s", what, envRequire, err, how)
	}
	t.Skipf("NOT TESTED: no %s: %v; %s", what, err, how)
}

// With returns the URL with one parameter more, for instance default_transaction_isolation.
func With(t testing.TB, address, key, value string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatalf("expected the URL of a database, but: %v", err)
	}
	q := u.Query()
	q.Set(key, value)
	u.RawQuery = strings.ReplaceAll(q.Encode(), "+", "%20") // the driver leaves a plus as it is
	return u.String()
}

// create makes a database on the server.
func create(t testing.TB, server, drop string) string {
	t.Helper()
	name := "opstream_test_" + strings.ToLower(rand.Text()[:12])
	run := func(ctx context.Context, statement string) {
		t.Helper()
		conn, err := pgx.Connect(ctx, server)
		if err != nil {
			t.Fatalf("connect to the server of the tests: %v", err)
		}
		defer conn.Close(ctx) //nolint:errcheck // nothing hangs on it
		if _, err := conn.Exec(ctx, fmt.Sprintf(statement, name)); err != nil {
			t.Fatalf(statement+": %v", name, err)
		}
	}
	run(t.Context(), "CREATE DATABASE %s")
	t.Cleanup(func() { run(context.WithoutCancel(t.Context()), drop) })
	u, err := url.Parse(server)
	if err != nil {
		t.Fatalf("expected the server's URL, but: %v", err)
	}
	u.Path = "/" + name
	return u.String()
}

var postgresServer = sync.OnceValues(func() (string, error) {
	if address := os.Getenv(EnvPostgres); address != "" {
		return address, nil
	}
	script, err := scriptPath()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "opstream-postgres-")
	if err != nil {
		return "", err
	}
	return start(script, dir)
})

// scriptPath finds deploy/local/postgres from where this package's source is.
func scriptPath() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("expected to know where the sources are, but this binary does not say")
	}
	script := filepath.Join(filepath.Dir(file), "..", "..", "deploy", "local", "postgres")
	if _, err := os.Stat(script); err != nil {
		return "", fmt.Errorf("find the script that starts one: %w", err)
	}
	return script, nil
}

var (
	heldMu sync.Mutex
	held   []io.Closer
)

// hold keeps a pipe open until the process ends: one that nobody knows any more would be closed by the collector.
func hold(pipe io.Closer) {
	heldMu.Lock()
	defer heldMu.Unlock()
	held = append(held, pipe)
}

// start runs the script, whose standard input ends with this process, and then its server.
func start(script, dir string) (string, error) {
	// The inner shell removes the folder when the server has stopped; by then this process may be gone.
	command := `"$0" run "$1" --no-sync; rc=$?; rm -rf "$1"; exit $rc`
	if os.Getenv(envRequire) == "1" { // nobody's machine is changed by a test that he has not asked for
		command = strings.Replace(command, "--no-sync", "--no-sync --install", 1)
	}
	cmd := exec.CommandContext(context.Background(), "bash", "-c", command, script, dir)
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return "", err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	// Not this process's: go test waits until everybody has let go of them.
	complaints, err := os.CreateTemp("", "opstream-postgres-*.log")
	if err != nil {
		return "", err
	}
	defer func() {
		_ = complaints.Close() // only read
		_ = os.Remove(complaints.Name())
	}()
	cmd.Stderr = complaints
	apart(cmd)
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("run %s: %w", script, err)
	}
	said := make(chan string, 1)
	go func() {
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			line = ""
		}
		said <- strings.TrimSpace(line)
	}()
	timer := time.NewTimer(serverTime)
	defer timer.Stop()
	select {
	case line := <-said:
		if line != "" {
			hold(pipe)
			return line, nil
		}
		err = cmd.Wait()
	case <-timer.C:
		err = errors.Join(fmt.Errorf("expected a server within %s", serverTime), cmd.Process.Kill(), cmd.Wait())
	}
	if _, seek := complaints.Seek(0, io.SeekStart); seek != nil {
		return "", errors.Join(err, seek)
	}
	text, read := io.ReadAll(io.LimitReader(complaints, 4096))
	return "", fmt.Errorf("run %s: %w: %s", script, errors.Join(err, read), strings.TrimSpace(string(text)))
}

var cockroachServer = sync.OnceValues(func() (string, error) {
	if address := os.Getenv(EnvCockroach); address != "" {
		return address, nil
	}
	binary := os.Getenv(envBinary)
	if binary == "" {
		return "", errNoCockroach
	}
	// The package's server outlives this process unless it is told to stop, and nobody tells it when a test panics. So the
	// binary notes its pid, and a shell that waits for the end of a pipe, as that of PostgreSQL does, ends it.
	dir, err := os.MkdirTemp("", "opstream-cockroach-")
	if err != nil {
		return "", err
	}
	noting := filepath.Join(dir, "cockroach")
	text := "#!/bin/sh\necho $$ >'" + dir + "/pid'\nexec '" + binary + "' \"$@\"\n"
	if err := os.WriteFile(noting, []byte(text), 0o700); err != nil {
		return "", err
	}
	watch := exec.CommandContext(context.Background(), "bash", "-c", `while read -r _; do :; done; kill -9 "$(cat "$0/pid")"; rm -rf "$0"`, dir)
	pipe, err := watch.StdinPipe()
	if err != nil {
		return "", err
	}
	hold(pipe)
	apart(watch)
	if err := watch.Start(); err != nil {
		return "", fmt.Errorf("watch over %s: %w", binary, err)
	}
	server, err := testserver.NewTestServer(testserver.CockroachBinaryPathOpt(noting))
	if err != nil {
		return "", fmt.Errorf("start %s: %w", binary, err)
	}
	return server.PGURL().String(), nil
})
