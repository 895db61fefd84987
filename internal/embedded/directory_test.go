package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

func TestSecondOpenerIsToldWhoHoldsTheDirectory(t *testing.T) {
	dir := t.TempDir()
	first := open(t, Config{Dir: dir})
	refused(t, Config{Dir: dir}, dir, fmt.Sprintf("process %d", os.Getpid()), "stop that process")
	closeBroker(t, first)
	second := open(t, Config{Dir: dir})
	closeBroker(t, second)
	closeBroker(t, second)
}

func TestLockNamesItsHolder(t *testing.T) {
	dir := t.TempDir()
	b := open(t, Config{Dir: dir})
	text, err := os.ReadFile(filepath.Join(dir, lockFile))
	if err != nil || strings.TrimSpace(string(text)) != fmt.Sprint(os.Getpid()) {
		t.Fatalf("expected the lock to say %d, but got %q, %v", os.Getpid(), text, err)
	}
	closeBroker(t, b)
	if text, _ := os.ReadFile(filepath.Join(dir, lockFile)); len(text) != 0 {
		t.Fatalf("expected an empty lock file after close, but it says %q", text)
	}
}

// TestRefusalGivesTheLockBack guards against a directory that is unusable until the process ends.
func TestRefusalGivesTheLockBack(t *testing.T) {
	dir := t.TempDir()
	closeBroker(t, open(t, Config{Dir: dir, Topics: []Topic{{Name: "a", Partitions: 2}}}))
	refused(t, Config{Dir: dir, Topics: []Topic{{Name: "a", Partitions: 3}}}, "2 partitions")
	closeBroker(t, open(t, Config{Dir: dir}))
}

func TestVersionFile(t *testing.T) {
	write := func(t *testing.T, dir, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, versionFile), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("new directory", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "a", "b")
		open(t, Config{Dir: dir})
		text, err := os.ReadFile(filepath.Join(dir, versionFile))
		if err != nil || string(text) != fmt.Sprintf("%d\n", FormatVersion) {
			t.Fatalf("expected version %d, but got %q, %v", FormatVersion, text, err)
		}
	})
	t.Run("newer", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, fmt.Sprintf("%d\n", FormatVersion+1))
		refused(t, Config{Dir: dir}, dir, fmt.Sprintf("format %d", FormatVersion+1), "newer opstream", "run that version")
	})
	t.Run("not a number", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, "one")
		refused(t, Config{Dir: dir}, `"one"`, "backup")
	})
	t.Run("removed from beside a log", func(t *testing.T) {
		dir := t.TempDir()
		closeBroker(t, open(t, Config{Dir: dir}))
		if err := os.Remove(filepath.Join(dir, versionFile)); err != nil {
			t.Fatal(err)
		}
		refused(t, Config{Dir: dir}, versionFile, "backup")
	})
}

func TestPathIsAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	refused(t, Config{Dir: file}, file, "is a file", "move the file away")
	refused(t, Config{Dir: filepath.Join(file, "below")}, "part of its path is a file", "another directory")
}

func TestReadOnlyDirectory(t *testing.T) {
	parent := t.TempDir()
	for _, passable := range []string{parent, filepath.Dir(parent)} { // for the other user below
		if err := os.Chmod(passable, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(parent, "data")
	if err := os.Mkdir(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	withoutPrivileges(t, func() {
		refused(t, Config{Dir: dir}, dir, "let this user", "use another data directory")
		refused(t, Config{Dir: filepath.Join(dir, "below")}, "let this user", "use another data directory")
	})
}

func TestDirectoryRemovedWhileInUse(t *testing.T) {
	for name, harm := range map[string]func(dir string) error{
		"removed": os.RemoveAll,
		"moved":   func(dir string) error { return os.Rename(dir, dir+"-before") },
		"replaced": func(dir string) error {
			return errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, lockFile), nil, 0o644))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			b := open(t, Config{Dir: dir})
			if err := b.dir.check(); err != nil {
				t.Fatalf("expected the directory to be there, but: %v", err)
			}
			ended := make(chan error, 1)
			go func() { ended <- b.Run(t.Context()) }()
			if err := harm(dir); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-ended:
				if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "start again") {
					t.Errorf("expected an error with a way out, but got %v", err)
				}
			case <-deadline(t).Done():
				t.Error("expected the broker to notice, but it did not")
			}
		})
	}
}

// TestReadOnlyLog is about a log that somebody else, root for instance, has written to in between.
func TestReadOnlyLog(t *testing.T) {
	dir := t.TempDir()
	b := open(t, Config{Dir: dir, Topics: []Topic{{Name: "a", Partitions: 1}}})
	produce(t, producer(t, b.Addrs()), &kgo.Record{Topic: "a"})
	closeBroker(t, b)
	for _, passable := range []string{dir, filepath.Dir(dir)} { // for the other user below
		if err := os.Chmod(passable, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	segment := ""
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		mode := fs.FileMode(0o666)
		if entry.IsDir() {
			mode = 0o777
		} else if filepath.Ext(path) == ".dat" {
			segment, mode = path, 0o444
		}
		return errors.Join(err, os.Chmod(path, mode))
	})
	if err != nil || segment == "" {
		t.Fatalf("expected a segment of the log, but found %q, %v", segment, err)
	}
	withoutPrivileges(t, func() { refused(t, Config{Dir: dir}, dir, segment, "let this user") })
}

func TestDamagedStateIsAnErrorWithAWayOut(t *testing.T) {
	dir := t.TempDir()
	closeBroker(t, open(t, Config{Dir: dir}))
	if err := os.WriteFile(filepath.Join(dir, logDir, "topics.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	refused(t, Config{Dir: dir}, filepath.Join(dir, logDir), "topics.json", "backup")
}
