package uffdtest

import (
	"fmt"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// traceOne starts a child under ptrace and kills it at its first stop. All of
// it is one thread's business.
func traceOne() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start a traced child: %w", err)
	}
	var status unix.WaitStatus
	_, err := unix.Wait4(cmd.Process.Pid, &status, 0, nil)
	if err == nil && !status.Stopped() {
		return errUntraced
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	return err
}
