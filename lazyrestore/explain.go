package lazyrestore

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/native"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// untraceable are the reasons why no tool can checkpoint a process, with what
// would help.
var untraceable = []struct {
	err  error
	help string
}{
	{proc.ErrKernelThread, "name a process"},
	{proc.ErrZombie, "there is nothing left of it to save"},
	{proc.ErrLeaderExited, "a process whose first thread has ended cannot be restored"},
	{proc.ErrSelf, "name another process"},
	{proc.ErrNotProcess, "name the process, not one of its threads"},
}

// explainFreeze gives the errors of a freeze the form that callers branch on.
func explainFreeze(pid int, err error) error {
	what := "process " + strconv.Itoa(pid)
	var traced *proc.TracedError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &traced):
		return &RefusedError{Reasons: []Reason{{What: what, Why: traced.Error(), Help: "end the debugger, or the other checkpoint"}}}
	case errors.Is(err, proc.ErrNoProcess) && errors.Is(unix.Kill(pid, 0), unix.ESRCH):
		return proc.ErrNoProcess // where that was found is of no use, unless it is one of its threads
	case errors.Is(err, proc.ErrNotPermitted):
		return &FacilityError{
			Facility: "permission to trace " + what,
			Hint:     "it belongs to another user, or has capabilities that you lack: run as root, with CAP_SYS_PTRACE; as its own user kernel.yama.ptrace_scope has to be 0",
			Err:      unix.EPERM,
		}
	}
	for _, u := range untraceable {
		if errors.Is(err, u.err) {
			return &RefusedError{Reasons: []Reason{{What: what, Why: u.err.Error(), Help: u.help}}}
		}
	}
	return err
}

// explainCapture does it for the errors of a capture.
func explainCapture(err error) error {
	var hidden *native.HiddenError
	if !errors.As(err, &hidden) {
		return err
	}
	return &FacilityError{Facility: "the right to see all of a process", Err: err, Hint: "lazyrestore check says what this user lacks"}
}

// explainRebuild does it for the errors of a rebuild.
func explainRebuild(err error) error {
	var space *native.SpaceError
	if errors.As(err, &space) {
		return &FacilityError{
			Facility: "a pid namespace with its own /proc",
			Hint:     "it takes CAP_SYS_ADMIN, and a mount on /: run as root, or without --pid-ns",
			Err:      err,
		}
	}
	var step *native.StepError
	if !errors.As(err, &step) {
		return err
	}
	switch {
	case step.Call == unix.SYS_USERFAULTFD && errors.Is(err, unix.EPERM):
		return &FacilityError{Facility: "userfaultfd", Hint: "run as root, or give this user access to /dev/userfaultfd", Err: err}
	case step.Call == unix.SYS_USERFAULTFD && errors.Is(err, unix.ENOSYS):
		return &FacilityError{Facility: "userfaultfd", Hint: "this kernel is built without CONFIG_USERFAULTFD", Err: err}
	case step.Call == unix.SYS_IOCTL && errors.Is(err, unix.EPERM):
		return &FacilityError{Facility: "userfaultfd fork events", Hint: "they need CAP_SYS_PTRACE: run as root", Err: err}
	case step.Unprivileged():
		return &FacilityError{Facility: "privilege to " + step.Step, Hint: "lazyrestore check says what this user may do", Err: err}
	}
	return err
}
