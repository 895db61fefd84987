//go:build linux || darwin || freebsd

package embedded

import (
	"errors"
	"fmt"
	"math"
	"os"
	"syscall"
)

// tryLock says whether the lock was free. The kernel gives it back when the process ends, however it ends.
func tryLock(f *os.File) (held bool, err error) {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, syscall.EWOULDBLOCK):
			return false, nil
		case !errors.Is(err, syscall.EINTR):
			return false, err
		}
	}
}

// freeBytes is the space that a process without privileges may still fill.
func freeBytes(dir string) (uint64, error) {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(dir, &stat); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	if int64(stat.Bavail) < 0 { // some systems count below zero into what is kept for root
		return 0, nil
	}
	return uint64(stat.Bavail) * uint64(stat.Bsize), nil //nolint:unconvert // some systems have signed blocks
}

// descriptorsMax is how many files this process may have open. The Go runtime has raised the limit as far as it may be.
func descriptorsMax() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return math.MaxUint64
	}
	return uint64(limit.Cur) //nolint:unconvert // some systems have it signed
}
