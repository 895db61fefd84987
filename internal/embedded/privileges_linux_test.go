package embedded

import (
	"os"
	"runtime"
	"syscall"
	"testing"
)

// withoutPrivileges runs f so that file permissions count, also where the tests run as root: the thread takes another user's file
// access for good, and ends with its goroutine, since it is never unlocked.
func withoutPrivileges(t *testing.T, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		f()
		return
	}
	const nobody = 65534
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		_, _, _ = syscall.RawSyscall(syscall.SYS_SETFSUID, nobody, 0, 0)
		f()
	}()
	<-done
}
