package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opstream/opstream/domain/operation"
	"github.com/opstream/opstream/internal/api"
	"github.com/opstream/opstream/producers"
)

// filledOperations is how many operations stand in a folder of filled, all succeeded.
const filledOperations = 500

var fillOnce sync.Once

// filled returns a copy of a data folder in which operations have run.
func filled(t *testing.T) string {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	original := filepath.Join(filepath.Dir(path), "data") // removed with the program
	fillOnce.Do(func() {
		in := devOn(t, original)
		in.fill("op", filledOperations)
		in.parts[0].signal(syscall.SIGTERM)
		if code, _ := in.parts[0].exits(stopLimit); code != exitOK {
			t.Fatalf("expected a clean stop, but got exit code %d\n%s", code, in.parts[0].log)
		}
	})
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.CopyFS(dir, os.DirFS(original)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// fill runs n operations in chains.
func (in *installation) fill(prefix string, n int) {
	in.t.Helper()
	for i := range n {
		in.request(&producers.Request{ID: fmt.Sprintf("%s-%d", prefix, i), Organization: "o", Type: "noop", DependencyToken: fmt.Sprint("t", i%10)})
	}
	in.requests.Wait()
	in.settled(30 * time.Second)
}

// succeeded waits until the tables have so many operations that succeeded, and none else.
func (in *installation) succeeded(n int64) {
	in.t.Helper()
	eventually(in.t, 30*time.Second, func() (bool, string) {
		counts, err := in.api.Counts(in.t.Context(), "", api.Call{})
		if err != nil {
			return false, err.Error()
		}
		total, good := int64(0), int64(0)
		for _, c := range counts.ByStatus {
			if total += c.Count; c.Status == operation.StatusSucceeded.String() {
				good = c.Count
			}
		}
		return total == n && good == n, fmt.Sprintf("%+v", counts.ByStatus)
	})
}

// whole starts the service on the folder, runs more operations, and holds the tables against the journal: nothing was lost.
func whole(t *testing.T, dir string, operations int64) {
	t.Helper()
	in := devOn(t, dir)
	in.succeeded(operations)
	in.fill(fmt.Sprint("more-", operations), 100)
	in.succeeded(operations + 100)
	in.parts[0].signal(syscall.SIGTERM)
	if code, _ := in.parts[0].exits(stopLimit); code != exitOK {
		t.Errorf("expected a clean stop, but got exit code %d\n%s", code, in.parts[0].log)
	}
	verified(t, dir)
}

func verified(t *testing.T, dir string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), must(program()), "verify", "--data", dir).CombinedOutput(); err != nil {
		t.Errorf("opstream verify: %v\n%s", err, out)
	}
}

// devArgs are those of dev on a folder, at ports that are free.
func devArgs(dir string, more ...string) []string {
	return append([]string{"dev", "--data", dir, "--kafka", "127.0.0.1:0", "--listen", "127.0.0.1:0"}, more...)
}

// failsWith runs a command that must end by itself with exit code 1 and say these things.
func failsWith(t *testing.T, cmd *exec.Cmd, words ...string) {
	t.Helper()
	d := daemonOf(t, "opstream", cmd.Args...)
	d.launchCommand(cmd)
	code, took := d.exits(30 * time.Second)
	said := d.log.String()
	t.Logf("after %s: %s", took.Round(time.Millisecond), said)
	if code != exitFailed {
		t.Errorf("expected exit code %d, but got %d", exitFailed, code)
	}
	for _, word := range words {
		if !strings.Contains(said, word) {
			t.Errorf("expected the message to say %q, but it does not", word)
		}
	}
	if n := strings.Count(strings.TrimSpace(said), "\n"); n > 3 {
		t.Errorf("expected a message that can be taken in at once, but it has %d lines", n+1)
	}
}

func opstream(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(path, args...)
}

func TestStartIsRefusedWithAWayOut(t *testing.T) {
	t.Parallel()
	const version, schema = "VERSION", "INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)"

	t.Run("two processes on one folder", func(t *testing.T) {
		t.Parallel()
		in := devInstallation(t)
		dir := filepath.Dir(in.tables)
		failsWith(t, opstream(t, devArgs(dir)...), dir, "process "+strconv.Itoa(in.parts[0].cmd.Process.Pid), "stop that process")
		in.fill("still", 50)
	})
	t.Run("port of the broker taken", func(t *testing.T) {
		t.Parallel()
		in := devInstallation(t)
		failsWith(t, opstream(t, devArgs(t.TempDir(), "--kafka", in.broker)...), in.broker[strings.Index(in.broker, ":")+1:], "choose another port")
	})
	t.Run("port of the API taken", func(t *testing.T) {
		t.Parallel()
		in := devInstallation(t)
		failsWith(t, opstream(t, devArgs(t.TempDir(), "--listen", strings.TrimPrefix(in.url, "http://"))...), "--listen", "address already in use")
	})
	t.Run("folder of a newer version", func(t *testing.T) {
		t.Parallel()
		dir := filled(t)
		before, err := os.ReadFile(filepath.Join(dir, version))
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, version), []byte("99\n"))
		failsWith(t, opstream(t, devArgs(dir)...), dir, "format 99", "newer opstream", "run that version")
		write(t, filepath.Join(dir, version), before)
		whole(t, dir, filledOperations)
	})
	t.Run("tables of a newer version", func(t *testing.T) {
		t.Parallel()
		dir := filled(t)
		db, err := sql.Open("sqlite", filepath.Join(dir, databaseFile))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.ExecContext(t.Context(), schema); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		failsWith(t, opstream(t, devArgs(dir)...), databaseFile, "version 999", "newer opstream", "made again from the journal")
	})
	t.Run("tables that are garbage", func(t *testing.T) {
		t.Parallel()
		dir := filled(t)
		tables := filepath.Join(dir, databaseFile)
		for _, suffix := range []string{"-wal", "-shm"} {
			if err := os.Remove(tables + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
		}
		write(t, tables, bytes.Repeat([]byte("not a database "), 1000))
		failsWith(t, opstream(t, devArgs(dir)...), tables, "remove it", "made again from the journal")
		if err := os.Remove(tables); err != nil {
			t.Fatal(err)
		}
		whole(t, dir, filledOperations)
	})
	t.Run("few descriptors", func(t *testing.T) {
		t.Parallel()
		dir := filled(t)
		sh := exec.Command("sh", append([]string{"-c", `ulimit -n 100 && exec "$0" "$@"`, must(program())}, devArgs(dir)...)...)
		failsWith(t, sh, "open files", "limit is 100", "ulimit -n")
		whole(t, dir, filledOperations)
	})
	t.Run("folder that may only be read", func(t *testing.T) {
		t.Parallel()
		dir := filled(t)
		open(t, dir)
		failsWith(t, unprivileged(opstream(t, devArgs(dir)...)), dir, "permission denied", "let this user")
		failsWith(t, unprivileged(opstream(t, devArgs(filepath.Join(dir, "new"))...)), dir, "permission denied")
		whole(t, dir, filledOperations)
	})
	t.Run("tables that may only be read", func(t *testing.T) {
		t.Parallel()
		dir := filled(t)
		open(t, dir)
		in := devInstallation(t) // for its broker
		tables := filepath.Join(dir, databaseFile)
		failsWith(t, unprivileged(opstream(t, "serve", "--roles", "projector", "--brokers", in.broker, "--database", tables)),
			tables, "permission denied", "let this user")
	})
	t.Run("no topics", func(t *testing.T) {
		t.Parallel()
		in := devInstallation(t)
		failsWith(t, opstream(t, "serve", "--roles", "scheduler", "--brokers", in.broker, "--topic-prefix", "none."), "none.", "create")
	})
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// open lets another user read, but not write, what is in a folder, and the way there.
func open(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		mode := os.FileMode(0o444)
		if err == nil && entry.IsDir() {
			mode = 0o555
		}
		return errors.Join(err, os.Chmod(path, mode))
	})
	t.Cleanup(func() { // or it could not be removed
		_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, _ error) error { return os.Chmod(path, 0o700) })
	})
	for _, up := range []string{filepath.Dir(dir), filepath.Dir(filepath.Dir(dir)), filepath.Dir(must(program()))} {
		err = errors.Join(err, os.Chmod(up, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// unprivileged has the command run as a user to whom permissions matter.
func unprivileged(cmd *exec.Cmd) *exec.Cmd {
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	return cmd
}

func TestTablesThatWereRemovedAreMadeAgain(t *testing.T) {
	t.Parallel()
	dir := filled(t)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(filepath.Join(dir, databaseFile) + suffix); err != nil && suffix == "" {
			t.Fatal(err)
		}
	}
	whole(t, dir, filledOperations)
}

// TestFolderRemovedUnderTheService guards against a process that lives on and keeps nothing.
func TestFolderRemovedUnderTheService(t *testing.T) {
	t.Parallel()
	dir := filled(t)
	in := devOn(t, dir)
	if err := os.Rename(dir, dir+"-away"); err != nil {
		t.Fatal(err)
	}
	d := in.parts[0]
	code, took := d.exits(30 * time.Second)
	if code != exitFailed || !strings.Contains(d.log.String(), "removed or replaced") || !strings.Contains(d.log.String(), "start again") {
		t.Errorf("expected an end with a way out, but got exit code %d after %s\n%s", code, took, d.log)
	}
	if err := errors.Join(os.RemoveAll(dir), os.Rename(dir+"-away", dir)); err != nil {
		t.Fatal(err)
	}
	whole(t, dir, filledOperations)
}

// TestJournalThatLostItsEndIsAnAlarm truncates a segment: what was lost must not go unnoticed, and the other partitions go on.
func TestJournalThatLostItsEndIsAnAlarm(t *testing.T) {
	t.Parallel()
	dir := filled(t)
	segments, err := filepath.Glob(filepath.Join(dir, "log", "partitions", "opstream.journal-*", "0.dat"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("expected segments of the journal, but found %v, %v", segments, err)
	}
	size := func(path string) int64 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	longest := slices.MaxFunc(segments, func(a, b string) int { return int(size(a) - size(b)) })
	if err := os.Truncate(longest, size(longest)/2); err != nil {
		t.Fatal(err)
	}
	in := devOn(t, dir)
	var status api.Status
	eventually(t, 20*time.Second, func() (bool, string) {
		got, err := in.api.Status(t.Context())
		if err != nil {
			return false, err.Error()
		}
		status = *got
		return !status.Ready && strings.Contains(status.Reason, "lost records"), fmt.Sprintf("%+v\n%s", status, in.parts[0].log)
	})
	t.Logf("status: %s\nlog: %s", status.Reason, in.parts[0].log)
	if out, err := exec.CommandContext(t.Context(), must(program()), "verify", "--brokers", in.broker, "--database", in.tables).CombinedOutput(); err == nil {
		t.Errorf("expected verify to find what is missing, but it says:\n%s", out)
	}
	in.parts[0].signal(syscall.SIGTERM)
	if code, _ := in.parts[0].exits(30 * time.Second); code != exitOK {
		t.Errorf("expected a clean stop, but got exit code %d\n%s", code, in.parts[0].log)
	}
}

// TestFullDisk fills a small file system up to the broker's limit, and then wholly.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	disk := t.TempDir()
	mount := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size=280m", "tmpfs", disk)
	if out, err := mount.CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: a full disk needs the right to mount a tmpfs, which there is not: %v %s", err, out)
	}
	t.Cleanup(func() {
		unmount := exec.Command("umount", disk)
		if out, err := unmount.CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	})
	in := devOn(t, filepath.Join(disk, "data"))
	in.fill("before", 500)
	filler := filepath.Join(disk, "filler")
	fillUp := func(bytes int64) {
		f, err := os.OpenFile(filler, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		block := make([]byte, 1<<20)
		for ; bytes > 0; bytes -= int64(len(block)) {
			if _, err := f.Write(block); err != nil {
				return // full, as was wanted
			}
		}
	}
	for step, bytes := range []int64{30 << 20, 400 << 20} {
		fillUp(bytes)
		eventually(t, 20*time.Second, func() (bool, string) { // the heartbeats find out
			const refuses = "refuses appends for want of free space: make room, and it goes on by itself"
			return strings.Count(in.parts[0].log.String(), refuses) > step, "the broker has not refused appends: " + in.parts[0].log.String()
		})
		for i := range 50 { // they wait in the client until there is room
			in.request(&producers.Request{ID: fmt.Sprintf("full-%d-%d", step, i), Organization: "o", Type: "noop"})
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		_, err := in.api.Submit(ctx, fmt.Appendf(nil, `{"organization":"o","id":"api-%d","type":"noop"}`, step), api.Call{})
		cancel()
		var problem *api.Problem
		if err == nil || errors.As(err, &problem) && problem.Status != http.StatusTooManyRequests && problem.Status != http.StatusServiceUnavailable {
			t.Errorf("expected no answer, or one that says to come again, but got %v", err)
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		in.requests.Wait()
		in.settled(60 * time.Second)
	}
	for _, err := range in.refused {
		t.Logf("not accepted: %v", err) // and said so, which is all that may happen on a disk that is wholly full
	}
	in.refused = nil
	in.judge()
	in.parts[0].signal(syscall.SIGTERM)
	if code, _ := in.parts[0].exits(30 * time.Second); code != exitOK {
		t.Errorf("expected a clean stop, but got exit code %d\n%s", code, in.parts[0].log)
	}
	verified(t, filepath.Join(disk, "data"))
}
