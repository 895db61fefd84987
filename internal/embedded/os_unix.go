//go:build linux || darwin || freebsd

package embedded

import (
	"errors"
	"fmt"
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
	return uint64(stat.Bavail) * uint64(stat.Bsize), nil
}
