//go:build unix

package pgtest

import (
	"os/exec"
	"syscall"
)

// apart keeps an interrupt from the keyboard from a process, which ends when its standard input does.
func apart(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
