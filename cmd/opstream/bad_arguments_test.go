package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opstream/opstream/producers/command"
)

// TestHostileArguments gives every command what nobody should give it. Each ends with an exit code of its own and a message of
// visible characters that says what was expected; none panics, waits, or prints what would move the cursor.
func TestHostileArguments(t *testing.T) {
	nowhere := freePort(t)
	t.Setenv("OPSTREAM_SERVER", "")
	t.Setenv("OPSTREAM_BROKERS", nowhere)
	server := serve(t, command.Routes(command.Config{Journal: &fakeLog{}})...)
	folder := t.TempDir()
	file := filepath.Join(folder, "file")
	if err := os.WriteFile(file, []byte("no folder"), 0o600); err != nil {
		t.Fatal(err)
	}
	const dirty = "a\x1b[2J\u202e\n\xff"
	long := strings.Repeat("x", 100_000)
	for _, c := range []struct {
		args []string
		code int
	}{
		{[]string{dirty}, exitUsage},
		{[]string{"--" + dirty}, exitUsage},
		{[]string{"--output"}, exitUsage},
		{[]string{long}, exitUsage},
		{[]string{""}, exitUsage},
		{[]string{"op", dirty}, exitUsage},
		{[]string{"op", "get"}, exitUsage},
		{[]string{"op", "get", "a", "b", "-O", "o"}, exitUsage},
		{[]string{"op", "get", "a"}, exitUsage},
		{[]string{"op", "get", "a", "-O", "o", "-o", dirty}, exitUsage},
		{[]string{"op", "get", "a", "-O", "o", "--server", dirty}, exitUsage},
		{[]string{"op", "get", "a", "-O", "o", "--server", "ftp://host"}, exitUsage},
		{[]string{"op", "get", "a", "-O", "o", "--server", "http://[::1"}, exitUsage},
		{[]string{"op", "get", "a", "-O", "o", "--server", "http://" + nowhere}, exitUnavailable},
		{[]string{"op", "get", "a", "-O", "o", "--server", "127.0.0.1:99999"}, exitUnavailable},
		{[]string{"op", "cancel", dirty, "-O", dirty, "--server", server}, exitRefused},
		{[]string{"op", "cancel", "a", "-O", "o", "--by", dirty, "--server", server}, exitRefused},
		{[]string{"op", "cancel", long, "-O", "o", "--server", server}, exitRefused},
		{[]string{"op", "postpone", "a", "-O", "o", "--until", dirty, "--server", server}, exitUsage},
		{[]string{"op", "postpone", "a", "-O", "o", "--until", "2016-12-31T23:59:60Z", "--server", server}, exitUsage},
		{[]string{"op", "retry", "a", "-O", "o", "--data", filepath.Join(folder, "none"), "--server", server}, exitUsage},
		{[]string{"op", "list", "--limit", "-1", "--server", server}, exitUsage},
		{[]string{"op", "list", "--limit", "99999999999999999999", "--server", server}, exitUsage},
		{[]string{"op", "submit", "--server", server}, exitUsage},
		{[]string{"op", "submit", "--from", folder, "--server", server}, exitUsage},
		{[]string{"op", "submit", "--from", dirty, "--server", server}, exitUsage},
		{[]string{"op", "submit", "--from", "a\x00b", "--server", server}, exitUsage},
		{[]string{"op", "wait", "a", "-O", "o", "--timeout", "-1", "--server", server}, exitUsage},
		{[]string{"journal", dirty}, exitUsage},
		{[]string{"journal", "tail", "-n", "-1"}, exitUsage},
		{[]string{"journal", "tail", "--from", dirty}, exitUsage},
		{[]string{"journal", "tail", "--since", dirty}, exitUsage},
		{[]string{"journal", "export", "--partition", "99999999999"}, exitUsage},
		{[]string{"deadletter", "list", "--since", dirty}, exitUsage},
		{[]string{"deadletter", "show", dirty}, exitUsage},
		{[]string{"deadletter", dirty}, exitUsage},
		{[]string{"deadletter", "list", "--brokers", dirty}, exitUsage},
		{[]string{"verify"}, exitUsage},
		{[]string{"verify", "--data", dirty, "--brokers", nowhere}, exitUsage},
		{[]string{"dev"}, exitUsage},
		{[]string{"dev", "--data", file, "--listen", "127.0.0.1:0", "--kafka", "127.0.0.1:0"}, exitFailed},
		{[]string{"dev", "--data", folder, "--kafka", "0.0.0.0:0"}, exitFailed},
		{[]string{"dev", "--data", folder, "--partitions", "-1", "--kafka", "127.0.0.1:0"}, exitUsage},
		{[]string{"dev", "--data", folder, "--log", dirty}, exitUsage},
		{[]string{"serve"}, exitUsage},
		{[]string{"serve", "--roles", dirty}, exitUsage},
		{[]string{"serve", "--roles", "api", "--brokers", nowhere}, exitUsage},
		{[]string{"bench", "--ops", dirty}, exitUsage},
		{[]string{"version", dirty}, exitUsage},
	} {
		r := run(t, "", c.args...)
		if r.code != c.code {
			t.Errorf("%.100q: expected exit code %d, but got %.600s", c.args, c.code, r)
		}
		if r.err == "" {
			t.Errorf("%.100q: expected to be told what is wrong, but got %s", c.args, r)
		}
		if len(r.err) > 16<<10 {
			t.Errorf("%.100q: expected a message that can be read, but got %d bytes", c.args, len(r.err))
		}
		shows(t, r.err)
		shows(t, r.out)
	}
	for _, env := range []string{dirty, "://", "ftp://x", long[:300]} {
		t.Setenv("OPSTREAM_SERVER", env)
		r := run(t, "", "op", "get", "a", "-O", "o")
		if r.code != exitUsage && r.code != exitUnavailable {
			t.Errorf("OPSTREAM_SERVER=%.40q: expected a wrong address to be refused, but got %.400s", env, r)
		}
		shows(t, r.err)
	}
	for _, env := range []string{dirty, ",", "host:port:more", "[::1"} {
		t.Setenv("OPSTREAM_BROKERS", env)
		r := run(t, "", "deadletter", "list")
		if r.code != exitUsage && r.code != exitUnavailable {
			t.Errorf("OPSTREAM_BROKERS=%.40q: expected a wrong address to be refused, but got %.400s", env, r)
		}
		shows(t, r.err)
	}
}
