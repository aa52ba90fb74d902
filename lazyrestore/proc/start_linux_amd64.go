package proc

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// StartOptions say how Start makes a process.
type StartOptions struct {
	PID        int      // its id in its pid namespace; 0: any
	Exec       int      // descriptor of the executable
	Args       []string // argv; none: one argument, "lazyrestore"
	NewSession bool     // setsid(2)
	Before     []Call   // run by the child before the execve; see CloneExec

	// Stack, where its soft limit is not 0, are the limits of the stack (soft,
	// hard) at the execve, which shape the address space; and Layout is the
	// personality(2) at the execve, if not 0, for the same reason.
	Stack  [2]uint64
	Layout uint64

	// Namespace, if not nil, is the pid namespace whose guest the process will
	// be, in a mount namespace of its own with a /proc of it. For us it has
	// another id than PID, see Tracer.PID.
	Namespace *PIDNamespace

	// TimeOffsets, where not empty, puts the process into a new time namespace
	// with these offsets, in the words of timens_offsets; see time_namespaces(7).
	// Whether the execve led there depends on the kernel (Linux 6.3).
	TimeOffsets string
}

// Start makes a child process that is traced and killed with the tracer. It
// runs already when Start returns, from its first instruction on, with all
// signals blocked and SIGKILL as its parent-death signal: it has to wait for
// something before it stops for its tracer. It inherits the descriptors that
// have no close-on-exec flag. A Tracer starts one process at most. Errors as
// of CloneExec.
func (t *Tracer) Start(opts StartOptions) error {
	return t.Do(func() error {
		if t.child != 0 {
			return errors.New("the tracer has started a process already")
		}
		arena, err := NewArena(1 << 16)
		if err != nil {
			return err
		}
		t.arena = arena // given back by Close: nobody waits for that then
		table, err := startTable(arena, &opts)
		if err != nil {
			return err
		}
		if err := t.clone(table, &opts); err != nil {
			return err
		}
		err = nil
		if opts.Namespace != nil {
			err = opts.Namespace.Settle(t.pidfd)
		}
		if err == nil {
			err = t.launch(t.child)
		}
		if err != nil {
			return errors.Join(err, t.KillAll())
		}
		return nil
	})
}

// clone makes the child.
func (t *Tracer) clone(table []Call, opts *StartOptions) error {
	clone := func() (err error) {
		t.child, t.pidfd, err = CloneExec(table, opts.PID, 0)
		return err
	}
	if opts.Namespace == nil {
		return clone()
	}
	err := opts.Namespace.within(clone)
	if err != nil && t.child != 0 {
		err = errors.Join(err, t.KillAll())
	}
	return err
}

// startTable is what the child does until its execve. Until it is seized, it
// ends with the thread that made it.
func startTable(arena *Arena, opts *StartOptions) ([]Call, error) {
	path, err := arena.String("")
	if err != nil {
		return nil, err
	}
	args := opts.Args
	if len(args) == 0 {
		args = []string{"lazyrestore"}
	}
	argv, err := arena.Strings(args)
	if err != nil {
		return nil, err
	}
	envp, err := arena.Strings(nil)
	if err != nil {
		return nil, err
	}
	table := []Call{{NR: unix.SYS_PRCTL, Args: [6]uint64{unix.PR_SET_PDEATHSIG, uint64(unix.SIGKILL)}}}
	if opts.Namespace != nil {
		// From there its parent cannot be seen. But the namespace knows of no
		// guest yet, and ends with the parent.
		calls, err := ownProc(arena)
		if err != nil {
			return nil, err
		}
		table = append(table, calls...)
	} else {
		alive, err := parentLives(arena)
		if err != nil {
			return nil, err
		}
		table = append(table, alive)
	}
	if opts.NewSession {
		table = append(table, Call{NR: unix.SYS_SETSID})
	}
	table = append(table, opts.Before...)
	if opts.Layout != 0 {
		table = append(table, Call{NR: unix.SYS_PERSONALITY, Args: [6]uint64{opts.Layout}})
	}
	if opts.Stack[0] != 0 {
		limit, mem, err := arena.Alloc(16, 8)
		if err != nil {
			return nil, err
		}
		binary.NativeEndian.PutUint64(mem, opts.Stack[0])
		binary.NativeEndian.PutUint64(mem[8:], opts.Stack[1])
		table = append(table, Call{NR: unix.SYS_PRLIMIT64, Args: [6]uint64{0, unix.RLIMIT_STACK, limit}})
	}
	if opts.TimeOffsets != "" {
		calls, err := timeNamespace(arena, opts.TimeOffsets)
		if err != nil {
			return nil, err
		}
		table = append(table, calls...)
	}
	return append(
		table,
		Call{NR: unix.SYS_EXECVEAT, Args: [6]uint64{uint64(opts.Exec), path, argv, envp, unix.AT_EMPTY_PATH}},
	), nil
}

// timeNamespace makes a time namespace for what the child execs. A table cannot
// hand a result on, so descriptor 0 is made free for the file: it is the lowest.
func timeNamespace(arena *Arena, offsets string) ([]Call, error) {
	path, err := arena.String("/proc/self/timens_offsets")
	if err != nil {
		return nil, err
	}
	text, err := arena.String(offsets)
	if err != nil {
		return nil, err
	}
	const atFDCWD = ^uint64(99)
	return []Call{
		{NR: unix.SYS_UNSHARE, Args: [6]uint64{unix.CLONE_NEWTIME}},
		{NR: unix.SYS_CLOSE | MayFail},
		{NR: unix.SYS_OPENAT, Args: [6]uint64{atFDCWD, path, unix.O_WRONLY}},
		{NR: unix.SYS_WRITE, Args: [6]uint64{0, text, uint64(len(offsets))}},
		{NR: unix.SYS_CLOSE},
	}, nil
}

// parentLives is a call that fails, and so ends the child, where its parent was
// killed before the child asked to end with it: nobody would ever come for it.
// A process that ends gives up its memory before it tells its children, so one
// that still has memory will tell them.
func parentLives(arena *Arena) (Call, error) {
	addr, mem, err := arena.Alloc(3*8, 8)
	if err != nil {
		return Call{}, err
	}
	// An iovec of one byte, read from where it is to where it is.
	binary.LittleEndian.PutUint64(mem, addr+16)
	binary.LittleEndian.PutUint64(mem[8:], 1)
	return Call{NR: unix.SYS_PROCESS_VM_READV, Args: [6]uint64{uint64(unix.Getpid()), addr, 1, addr, 1}}, nil
}

// launch begins to trace a child that has just exec'ed. It is seized, not
// stopped: a child that asked to be traced would stop at its execve, which
// costs two changes of context.
func (t *Tracer) launch(pid int) error {
	err := ptrace(unix.PTRACE_SEIZE, pid, 0, seizeOptions|unix.PTRACE_O_EXITKILL)
	if err != nil {
		return taskError("seize", pid, err)
	}
	t.tasks[pid] = &task{tid: pid, pid: pid, seized: true}
	return nil
}

// PID is the id of the process that Start made, until KillAll; 0: none.
func (t *Tracer) PID() int { return t.child }

// PIDFD is a pidfd of the process that Start made, which from now on belongs to
// the caller; -1: there is none, or it was taken before.
func (t *Tracer) PIDFD() int {
	fd := t.pidfd
	t.pidfd = -1
	return fd
}

// KillAll kills the process that Start made and waits for its end; a process
// that was detached is killed too. Other tasks that are traced and belong to
// other processes are left alone.
func (t *Tracer) KillAll() error {
	return t.Do(func() error {
		if t.pidfd >= 0 {
			unix.Close(t.pidfd)
			t.pidfd = -1
		}
		pid := t.child
		if pid == 0 {
			return nil
		}
		// It has not been waited for, or wait4 would have told: its id is its own.
		t.child = 0
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
		// The first thread can be waited for once all others have been.
		for tid, k := range t.tasks {
			if k.pid == pid && tid != pid {
				t.bury(tid)
			}
		}
		delete(t.tasks, pid)
		return reap(pid)
	})
}

// Kill kills a process whose threads are traced and returns when it has ended;
// its parent has still to wait for it, unless that is us. The error is
// ErrNoProcess where it has ended by itself.
func (t *Tracer) Kill(pid int) error {
	return t.Do(func() error {
		// While a task is traced nobody else can wait for its end, and nobody
		// can be given its id.
		if t.tasks[pid] == nil {
			return taskError("kill", pid, ErrNoProcess)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			return taskError("kill", pid, err)
		}
		for tid, k := range t.tasks {
			if k.pid == pid && tid != pid {
				t.bury(tid)
			}
		}
		t.bury(pid)
		return nil
	})
}

// BuryAll waits for the end of all tasks that are traced, which have been killed:
// by a signal, by the end of their process, or by an execve of another thread.
func (t *Tracer) BuryAll() error {
	return t.Do(func() error {
		for tid, k := range t.tasks {
			if tid != k.pid {
				t.bury(tid)
			}
		}
		for tid := range t.tasks {
			t.bury(tid)
		}
		return nil
	})
}

// bury waits for the end of a task that has been killed.
func (t *Tracer) bury(tid int) {
	for t.tasks[tid] != nil {
		if _, _, err := t.wait4(tid); err != nil {
			delete(t.tasks, tid)
		}
	}
}
