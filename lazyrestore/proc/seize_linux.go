package proc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Reasons why a process cannot be traced, beside ErrNoProcess and TracedError.
var (
	ErrKernelThread = errors.New("it is a thread of the kernel")
	ErrZombie       = errors.New("it has ended and waits for its parent (a zombie)")
	ErrLeaderExited = errors.New("its first thread has ended while others run")
	ErrNotProcess   = errors.New("it is a thread, not a process")
	ErrSelf         = errors.New("it is this process itself")
	ErrNotPermitted = errors.New("no permission to trace it (another user, or more capabilities)")
)

// TracedError says that a process is traced already.
type TracedError struct {
	TID    int // the task that is traced
	Tracer int // the process that traces it, say a debugger
}

func (e *TracedError) Error() string {
	return fmt.Sprintf("process %d traces task %d already", e.Tracer, e.TID)
}

// seizeOptions are the options of all tasks that we trace.
const seizeOptions = unix.PTRACE_O_TRACESYSGOOD

// SeizeAll begins to trace all threads of a process and stops them. When it
// returns they stand in the kernel, at their way to user mode; a signal that
// one of them was about to get has been given to it, so that it stands before
// the first instruction of the handler. The process knows nothing of it: a
// system call that was interrupted goes on when the thread does.
//
// It gives the ids of the threads, the first thread's first. Errors:
// ErrNoProcess and the reasons above, *TracedError, *StuckError, those of ctx.
// No task is traced then but those that do not stop, until Close.
func (t *Tracer) SeizeAll(ctx context.Context, pid int) (tids []int, err error) {
	err = t.Do(func() error {
		tids, err = t.seizeAll(ctx, pid)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("seize process %d: %w", pid, err)
	}
	return tids, nil
}

// seizeAll begins anew where a thread that was not stopped yet has called execve: it has
// ended all others, and goes on under the id of the first.
func (t *Tracer) seizeAll(ctx context.Context, pid int) (tids []int, err error) {
	ours := 0
	if t.tasks[pid] == nil {
		// A first thread that is dying is ours still, though we have let it go: no detach
		// reaches it. Another thread that we have let go before has ended it by an execve,
		// for which its seizure waits; or a signal has ended all, as the seizure finds.
		ours = t.tid
	}
	for begin := time.Now(); ; {
		tids, err = t.seizeOnce(ctx, pid, ours)
		switch {
		case errors.Is(err, errReplaced):
			ours = t.tid // who has called it may still be seized
		case errors.Is(err, ErrLeaderExited) && time.Since(begin) < execveTime:
			time.Sleep(napMax) // for an execve the first thread ends before the last
		default:
			return tids, err
		}
	}
}

// errReplaced says that another thread's execve has ended the first thread of a
// process.
var errReplaced = errors.New("it has called execve")

// execveTime is how long an execve has to end all threads after the first.
const execveTime = 200 * time.Millisecond

func (t *Tracer) seizeOnce(ctx context.Context, pid, ours int) (tids []int, err error) {
	if err := traceable(pid, ours); err != nil {
		return nil, err
	}
	mine := make(map[int]bool)
	defer func() {
		if err == nil {
			return
		}
		var tasks []*task
		for tid := range mine {
			if k := t.tasks[tid]; k != nil {
				tasks = append(tasks, k)
			}
		}
		_ = t.letGo(tasks) // the error that led here says more
	}()
	// Threads that still run may make others, and the kernel's list may miss
	// one while others end: done is when two lists in a row bring nothing new.
	for quiet := 0; quiet < 2; {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		if tids, err = ReadTasks(pid); err != nil {
			return nil, err
		}
		fresh, err := t.seizeNew(pid, tids, mine)
		if err == nil {
			err = t.haltAll(ctx, fresh)
		}
		if err != nil {
			return nil, err
		}
		quiet++
		if len(fresh) > 0 {
			quiet = 0
		}
	}
	if err := t.sameLeader(pid); err != nil {
		return nil, err
	}
	return t.leaderFirst(pid, tids)
}

// sameLeader looks, when all threads stand still, whether the first one is that which was
// seized and has stopped. The error is errReplaced.
func (t *Tracer) sameLeader(pid int) error {
	k := t.tasks[pid]
	if k == nil {
		return errReplaced // what has the id now was not seized
	}
	var regs Regs
	if err := getRegs(pid, &regs); err != nil {
		k.stopped = false
		return errReplaced
	}
	_, news, err := t.poll(pid) // only one that has not stopped before has any
	if news || err != nil {
		return errReplaced
	}
	return nil
}

// leaderFirst is the seized ones of tids, the process's first thread first.
func (t *Tracer) leaderFirst(pid int, tids []int) ([]int, error) {
	if t.tasks[pid] == nil {
		return nil, ErrNoProcess
	}
	out := []int{pid}
	for _, tid := range tids {
		if tid != pid && t.tasks[tid] != nil {
			out = append(out, tid)
		}
	}
	return out, nil
}

// traceable looks for what the kernel would only call "not permitted". Tracer ours may
// trace it already.
func traceable(pid, ours int) error {
	s, err := ReadStatus(pid)
	if err != nil {
		return err
	}
	switch {
	case s.Tgid != pid:
		return ErrNotProcess
	case pid == unix.Getpid():
		return ErrSelf
	case s.Kthread:
		return ErrKernelThread
	case (s.State == 'Z' || s.State == 'X') && s.Threads == 0:
		return errReplaced // or waited for, which the next look tells
	case (s.State == 'Z' || s.State == 'X') && s.Threads > 1:
		return ErrLeaderExited
	case s.TracerPid != 0 && s.TracerPid != ours:
		return &TracedError{pid, processOf(s.TracerPid)}
	case s.State == 'Z' || s.State == 'X':
		return ErrZombie
	case !s.HasMM && s.TellsKthread:
		return ErrLeaderExited // or is about to
	case !s.HasMM:
		return ErrKernelThread // before Linux 6.4
	}
	return nil
}

// processOf is the process that a thread belongs to: the kernel names the
// thread that traces.
func processOf(tid int) int {
	if s, err := ReadStatus(tid); err == nil {
		return s.Tgid
	}
	return tid
}

// seizeNew seizes those of tids that are not seized yet. Threads that end
// meanwhile are left out.
func (t *Tracer) seizeNew(pid int, tids []int, mine map[int]bool) (fresh []*task, err error) {
	var others []int
	for tid := range mine {
		if tid != pid && t.tasks[tid] != nil {
			others = append(others, tid)
		}
	}
	u := hire(others)
	defer u.dismiss()
	for _, tid := range tids {
		if mine[tid] && t.tasks[tid] != nil {
			continue
		}
		k, err := t.seize(pid, tid)
		if tid == pid && errors.Is(err, ErrNotPermitted) {
			k, err = t.seize(pid, tid) // it was dead, and is another thread by now
		}
		var traced *TracedError
		if tid == pid && errors.As(err, &traced) && tracerOf(tid) == t.tid {
			k, err = t.adopt(pid), nil
		}
		if err == nil && tid != pid {
			u.add(tid)
		}
		if err != nil {
			if !errors.Is(err, ErrNoProcess) && !errors.Is(err, ErrZombie) {
				return fresh, err
			}
			if tid == pid {
				return fresh, errReplaced // or it has ended, which the next look tells
			}
			continue
		}
		mine[tid] = true
		fresh = append(fresh, k)
	}
	return fresh, nil
}

// adopt takes into the books a first thread that was seized under another id, before
// its execve.
func (t *Tracer) adopt(pid int) *task {
	k := &task{tid: pid, pid: pid, seized: true}
	t.tasks[pid] = k
	return k
}

func tracerOf(tid int) int {
	s, _ := ReadStatus(tid)
	return s.TracerPid
}

func (t *Tracer) seize(pid, tid int) (*task, error) { return t.seizeWith(pid, tid, seizeOptions) }

func (t *Tracer) seizeWith(pid, tid int, options uintptr) (*task, error) {
	err := seize(tid, options)
	if errors.Is(err, unix.EPERM) {
		err = whyNot(tid)
	}
	if err != nil {
		return nil, taskError("seize", tid, err)
	}
	k := &task{tid: tid, pid: pid, seized: true}
	t.tasks[tid] = k
	return k, nil
}

// whyNot finds out why a task could not be seized: the kernel has one error for
// many reasons.
func whyNot(tid int) error {
	s, err := ReadStatus(tid)
	switch {
	case err != nil:
		return err
	case s.State == 'Z' || s.State == 'X':
		return ErrZombie
	case s.Kthread:
		return ErrKernelThread
	case s.TracerPid != 0:
		return &TracedError{tid, processOf(s.TracerPid)}
	}
	return ErrNotPermitted
}

// haltAll stops tasks that run: all are told before the first is waited for.
func (t *Tracer) haltAll(ctx context.Context, tasks []*task) error {
	for _, k := range tasks {
		if err := t.poke(k); gone(err) != nil {
			return err
		}
	}
	deadline := t.deadline()
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	for _, k := range tasks {
		if err := t.settle(k, deadline); gone(err) != nil {
			return markStuck(err, tasks) // all had this time
		}
	}
	return nil
}

// waitTold waits for a task that was told to stop. A first thread is told again now and
// then: what has its id after an execve was not.
func (t *Tracer) waitTold(k *task, deadline time.Time) (Stop, error) {
	for {
		till := deadline
		if again := time.Now().Add(toldAgain); k.seized && k.tid == k.pid && again.Before(till) {
			till = again
		}
		stop, err := t.wait(k.tid, till)
		var stuck *StuckError
		if !errors.As(err, &stuck) || !till.Before(deadline) {
			return stop, err
		}
		if err := t.poke(k); err != nil {
			delete(t.tasks, k.tid) // it was not seized
			return stop, err
		}
	}
}

const toldAgain = 50 * time.Millisecond

// settle waits until a task that was interrupted stands still for that reason.
// A signal that it reports first is given to it: with the interrupt still to
// come it does not run on.
func (t *Tracer) settle(k *task, deadline time.Time) error {
	return t.settleBy(k, func() (Stop, error) { return t.waitTold(k, deadline) })
}

func (t *Tracer) settleBy(k *task, wait func() (Stop, error)) error {
	for {
		stop, err := wait()
		if err != nil {
			return err
		}
		switch stop.Kind {
		case StopInterrupt, StopGroup:
			return nil
		case StopSignal:
			// The interrupt may have been used up by this very stop.
			if err := t.poke(k); err != nil {
				return err
			}
			if err := t.Cont(k.tid, stop.Signal); err != nil {
				return err
			}
		case StopSyscall, StopEvent:
			if err := t.Cont(k.tid, 0); err != nil {
				return err
			}
		}
	}
}

// SeizeThreads begins to trace threads of process pid, which is a child of ours, and
// stops them, all at once, as SeizeAll does for all of them. They must be there. On an
// error none of them is traced. It waits for as long as it takes: whoever cannot, kills
// the process, which is the *ExitError or ErrNoProcess of those that had not stopped.
//
// It sleeps meanwhile. To look again and again keeps a processor from threads that
// have to run to stop, and giving that away, be it by sched_yield(2), does not have
// them run at once.
func (t *Tracer) SeizeThreads(pid int, tids []int) error {
	return t.Do(func() (err error) {
		tasks := make([]*task, 0, len(tids))
		defer func() {
			if err != nil {
				_ = t.letGo(tasks)
			}
		}()
		for _, tid := range tids {
			k, err := t.seize(pid, tid)
			if err != nil {
				return err
			}
			tasks = append(tasks, k)
		}
		for _, k := range tasks {
			if err := t.poke(k); gone(err) != nil {
				return err
			}
		}
		for _, k := range tasks {
			err := t.settleBy(k, func() (Stop, error) {
				stop, _, err := t.wait4(k.tid)
				return stop, err
			})
			if gone(err) != nil {
				return err
			}
		}
		for _, tid := range tids {
			if t.tasks[tid] == nil {
				return taskError("seize", tid, ErrNoProcess)
			}
		}
		return nil
	})
}

// Hold begins to trace threads of process pid, which run on until HaltHeld. From
// now on the process is killed if ours dies, until all of them are detached. While
// the process may call execve, threads of it must not be seized: the call holds a
// lock for which that waits, and waits itself until the tracer has buried the
// threads that it ends.
func (t *Tracer) Hold(pid int, tids []int) error {
	return t.Do(func() error {
		for _, tid := range tids {
			if _, err := t.seizeWith(pid, tid, seizeOptions|unix.PTRACE_O_EXITKILL); err != nil {
				return err
			}
		}
		return nil
	})
}

// HaltHeld stops threads that are held, for which it waits as long as it takes,
// say in a cgroup that is frozen. The error is ErrNoProcess or an *ExitError where
// one of them has ended.
func (t *Tracer) HaltHeld(tids []int) error {
	return t.Do(func() error {
		for _, tid := range tids {
			if err := taskError("interrupt", tid, ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0)); err != nil {
				return err
			}
		}
		for _, tid := range tids {
			for {
				stop, _, err := t.wait4(tid)
				if err != nil {
					return err
				}
				if stop.Kind == StopInterrupt || stop.Kind == StopGroup {
					break
				}
				// A SIGSTOP: the process is about to be stopped.
				if err := t.resume(unix.PTRACE_CONT, tid, stop.Signal); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
