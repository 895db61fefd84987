package embedded

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// FormatVersion is the number in DIR/VERSION: the layout of the data directory together with kfake's own format. It goes up when
// an older opstream could no longer read what this one writes.
const FormatVersion = 1

const (
	lockFile    = "lock"
	versionFile = "VERSION"
	logDir      = "log"
)

// directory is a data directory that this process holds.
type directory struct {
	path string
	lock *os.File
}

// check says whether the directory is still the one that was opened.
func (d *directory) check() error {
	held, err := d.lock.Stat()
	if err != nil {
		return fmt.Errorf("embedded broker: expected to look at the lock of %s, but: %w", d.path, err)
	}
	there, err := os.Stat(filepath.Join(d.path, lockFile))
	if err == nil && os.SameFile(held, there) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return nil // it cannot be seen for now, which says nothing
	}
	return fmt.Errorf("embedded broker: expected the data directory %s to stay where it is, but it was removed or replaced while it was "+
		"in use: the broker can keep nothing any more; put the directory or a backup of it back, and start again", d.path)
}

// HeldError says that a broker has the directory open already.
type HeldError struct{ Dir, Holder string }

func (e *HeldError) Error() string {
	return fmt.Sprintf("embedded broker: expected to have the data directory %s alone, but %s holds it: stop that process and "+
		"wait until it has ended, or use another data directory", e.Dir, e.Holder)
}

func openDirectory(dir string) (*directory, error) {
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return nil, fmt.Errorf("embedded broker: expected %s to be a directory, but it is a file: name a directory for the data, "+
			"or move the file away", dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, unwritable(dir, err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, unwritable(dir, err)
	}
	if err := holdLock(dir, lock); err != nil {
		_ = lock.Close() // nothing was written that must last
		return nil, err
	}
	d := &directory{path: dir, lock: lock}
	err = checkVersion(dir)
	if err == nil {
		err = checkFiles(dir)
	}
	if err != nil {
		_ = d.close() // the first error says what to do
		return nil, err
	}
	return d, nil
}

const (
	// descriptorsMin is what a service with a broker needs beside its log: some 50 connections to itself, the tables, and as much
	// again for clients.
	descriptorsMin = 256
	// descriptorsPerSegment are one for writing and one for reading, which stay open.
	descriptorsPerSegment = 2
)

// checkFiles finds what would let kfake open the log and then fail with every append, with a line in its own log and an error to
// the client that says nothing: files that cannot be written, and fewer descriptors than the files need.
func checkFiles(dir string) error {
	segments := uint64(0)
	err := filepath.WalkDir(filepath.Join(dir, logDir), func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // a new directory
		case err != nil:
			return unwritable(dir, err)
		case !entry.Type().IsRegular():
			return nil
		}
		if filepath.Ext(path) == ".dat" {
			segments++
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return unwritable(dir, err)
		}
		return f.Close()
	})
	if err != nil {
		return err
	}
	if have, need := descriptorsMax(), descriptorsMin+descriptorsPerSegment*segments; have < need {
		return fmt.Errorf("embedded broker: expected to be allowed %d open files (%d, and %d for each of the %d segments in %s), but "+
			"the limit is %d: raise it, with ulimit -n 65536 in the shell that starts opstream or LimitNOFILE=65536 in its systemd unit",
			need, descriptorsMin, descriptorsPerSegment, segments, filepath.Join(dir, logDir), have)
	}
	return nil
}

// holdLock takes the lock before it writes the process id, so the id in the file is the holder's, or for an instant that of the
// one before.
func holdLock(dir string, lock *os.File) error {
	held, err := tryLock(lock)
	if err != nil {
		return fmt.Errorf("embedded broker: expected to lock %s, but could not: use a directory on a local file system: %w", dir, err)
	}
	if !held {
		text, _ := io.ReadAll(io.LimitReader(lock, 32))
		holder := "another process"
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			holder = fmt.Sprintf("process %d", pid)
			if pid == os.Getpid() {
				holder += " (this one)"
			}
		}
		return &HeldError{dir, holder}
	}
	if err := lock.Truncate(0); err != nil {
		return unwritable(dir, err)
	}
	if _, err := lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return unwritable(dir, err)
	}
	return nil
}

// close gives the directory back. The file stays: removing it would let a third process lock a new file while a second one still
// waits at the old.
func (d *directory) close() error {
	return errors.Join(d.lock.Truncate(0), d.lock.Close())
}

// checkVersion writes the version into a new directory and refuses one that this program would misread.
func checkVersion(dir string) error {
	path := filepath.Join(dir, versionFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, logDir)); err == nil {
			return fmt.Errorf("embedded broker: expected the file %s beside the log, but there is none: it was removed, or the "+
				"directory is not opstream's; put it back from a backup, or use another data directory", path)
		}
		return writeVersion(dir, path)
	}
	if err != nil {
		return fmt.Errorf("embedded broker: expected to read %s, but could not: let this user (uid %d) read it: %w", path, os.Getuid(), err)
	}
	version, err := strconv.Atoi(strings.TrimSpace(string(text)))
	switch {
	case err != nil || version < 1:
		return fmt.Errorf("embedded broker: expected a format number in %s, but it says %q: put the file back from a backup, or use "+
			"another data directory", path, strings.TrimSpace(string(text)))
	case version > FormatVersion:
		return fmt.Errorf("embedded broker: expected data of format %d or older in %s, but it is of format %d: a newer opstream wrote "+
			"it; run that version or a later one, or use another data directory", FormatVersion, dir, version)
	}
	return nil
}

// writeVersion makes the file appear whole or not at all, and before any log does.
func writeVersion(dir, path string) error {
	temporary := path + ".new"
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return unwritable(dir, err)
	}
	_, err = f.WriteString(strconv.Itoa(FormatVersion) + "\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return unwritable(dir, err)
	}
	return nil
}

func unwritable(dir string, err error) error {
	if errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("embedded broker: expected to make the directory %s, but a part of its path is a file: name another "+
			"directory: %w", dir, err)
	}
	return fmt.Errorf("embedded broker: expected to write in the data directory %s, but could not: let this user (uid %d) write there, "+
		"see that the disk is neither full nor mounted read-only, or use another data directory: %w", dir, os.Getuid(), err)
}
