//go:build !linux

package embedded

import (
	"os"
	"testing"
)

func withoutPrivileges(t *testing.T, f func()) {
	t.Helper()
	if os.Getuid() == 0 {
		t.Fatal("expected to run as an ordinary user, but this is root, for whom nothing is read-only: run the tests as another user")
	}
	f()
}
