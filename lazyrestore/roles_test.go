package lazyrestore_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

// checkpointRole is a checkpoint in a process of its own, which a test may kill.
type checkpointRole struct {
	PID          int
	Dir          string
	LeaveRunning bool
}

func roleCheckpoint(arguments []byte) error {
	var r checkpointRole
	if err := json.Unmarshal(arguments, &r); err != nil {
		return err
	}
	_, err := lazyrestore.Checkpoint(context.Background(), r.PID, lazyrestore.CheckpointOptions{Dir: r.Dir, LeaveRunning: r.LeaveRunning})
	return err
}

// restoreRole is a restore in a process of its own; it prints "runs" when the
// restored process does, and ends when the pager has left and the process has
// ended.
type restoreRole struct {
	Image      string
	Background lazyrestore.Background
	Eager      bool
	Apart      bool // in a pid namespace of its own
}

func roleRestore(arguments []byte) error {
	var r restoreRole
	if err := json.Unmarshal(arguments, &r); err != nil {
		return err
	}
	p, err := lazyrestore.Restore(context.Background(), r.Image, lazyrestore.RestoreOptions{Background: r.Background, Eager: r.Eager, PIDNamespace: r.Apart})
	if err != nil {
		return err
	}
	fmt.Println("runs")
	if _, err := p.Wait(); err != nil {
		return err
	}
	return p.Close()
}

// roleTrace is another tracer: it seizes a process and holds it until its
// standard input ends.
func roleTrace(arguments []byte) error {
	var pid int
	if err := json.Unmarshal(arguments, &pid); err != nil {
		return err
	}
	runtime.LockOSThread()
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0, 0, 0); errno != 0 {
		return errno
	}
	fmt.Println("traces")
	os.Stdin.Read(make([]byte, 1))
	return nil
}
