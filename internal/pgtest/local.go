package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Local is a PostgreSQL of one test, which the test may stop and start.
type Local struct {
	script, dir string
	// URL is of an empty database; it stays the same for the server's life.
	URL string
}

// StartLocal starts a PostgreSQL that ends with the test, however that ends. Where there is none, the test ends as with [Postgres].
func StartLocal(t testing.TB) *Local {
	t.Helper()
	l, err := startLocal()
	if err != nil {
		missing(t, true, "PostgreSQL", "see what deploy/local/postgres says", err)
	}
	t.Cleanup(func() {
		if err := l.Stop(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func startLocal() (*Local, error) {
	script, err := scriptPath()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "opstream-postgres-")
	if err != nil {
		return nil, err
	}
	// This shell stops the server and removes the folder when this process has ended.
	guard := exec.CommandContext(context.Background(), "bash", "-c", `while read -r _; do :; done; "$0" stop "$1"; rm -rf "$1"`, script, dir)
	pipe, err := guard.StdinPipe()
	if err != nil {
		return nil, err
	}
	apart(guard)
	if err := guard.Start(); err != nil {
		return nil, fmt.Errorf("watch over a PostgreSQL: %w", err)
	}
	hold(pipe)
	l := &Local{script: script, dir: dir}
	return l, l.Start()
}

// Start starts the server after [Local.Stop], at the address and with the data that it had, and returns when it serves.
func (l *Local) Start() error {
	out, err := l.run("start", l.dir, "--no-sync")
	if err != nil {
		return err
	}
	address := strings.TrimSpace(out)
	if l.URL != "" && address != l.URL {
		return errors.New("expected the server to come back at its address, but somebody else has its port; run the test again")
	}
	l.URL = address
	return nil
}

// Stop ends all connections, and then the server, which has written everything by then.
func (l *Local) Stop() error {
	_, err := l.run("stop", l.dir)
	return err
}

func (l *Local) run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), serverTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.script, args...)
	out, err := os.CreateTemp("", "opstream-postgres-*.log") // not a pipe, which the server would keep open
	if err != nil {
		return "", err
	}
	defer func() {
		_ = out.Close() // only read
		_ = os.Remove(out.Name())
	}()
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("deploy/local/postgres %s: %w: %s", args[0], err, bytes.TrimSpace(said.Bytes()))
	}
	text, err := os.ReadFile(out.Name())
	return string(text), err
}
