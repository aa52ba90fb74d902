package proc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// PIDTakenError says that a task could not be given the id that it has to have.
type PIDTakenError struct{ PID int }

func (e *PIDTakenError) Error() string { return fmt.Sprintf("process id %d is in use", e.PID) }

// cloneArgsSize is the size of struct clone_args, see clone(2).
const cloneArgsSize = 88

// CloneExec makes a child process that runs the calls of table and ends there:
// the last that is expected to return is an execve, behind which an error
// leads to exit status 127. Until it has exec'ed or exited the child shares
// our memory, and the calling thread waits (CLONE_VM and CLONE_VFORK), so the
// memory that the calls' arguments point to must not be on a Go stack: an Arena
// holds it. The child has all signals blocked, which lasts across the execve.
//
// The child gets the id pid in its pid namespace (which is not ours where the
// calling thread says so, see setns(2), or flags do), which needs
// CAP_CHECKPOINT_RESTORE, or any where pid is 0. flags are further ones of
// clone(2), of the kind CLONE_NEWPID. The error is a *PIDTakenError
// where it is in use, and a *CallError where a call failed that may not, or the
// execve did; the child has then been waited for. The caller owns pidfd and
// has to wait for the child. A child that traces itself is traced by the
// calling thread: call CloneExec in a Tracer's Do.
func CloneExec(table []Call, pid int, flags uint64) (child, pidfd int, err error) {
	if len(table) == 0 {
		return 0, -1, errors.New("clone: the table of system calls is empty")
	}
	// The child uses no stack; clone3 with CLONE_VM wants one nevertheless.
	const stack = 4096
	arena, err := NewArena(stack + cloneArgsSize + 64 + TableSize(len(table)))
	if err != nil {
		return 0, -1, err
	}
	defer arena.Close()
	c, err := layClone(arena, stack, table, pid, flags)
	if err != nil {
		return 0, -1, err
	}
	r, err := c.run()
	if err != nil {
		return 0, -1, err
	}
	if errno := syscall.Errno(-r); r < 0 {
		if errno == unix.EEXIST && pid != 0 {
			return 0, -1, &PIDTakenError{pid}
		}
		return 0, -1, fmt.Errorf("clone a process with id %d: %w", pid, errno)
	}
	child, pidfd = int(r), int(int32(binary.LittleEndian.Uint32(c.pidfd)))
	if err := c.check(table); err != nil {
		unix.Close(pidfd)
		return 0, -1, errors.Join(fmt.Errorf("start process %d: %w", child, err), reap(child))
	}
	return child, pidfd, nil
}

// cloneCall is a clone3 laid out in an arena.
type cloneCall struct {
	args  uint64 // address of struct clone_args
	table uint64
	view  []byte // of the table
	pidfd []byte
}

func layClone(arena *Arena, stack int, table []Call, pid int, flags uint64) (*cloneCall, error) {
	stackAddr, _, err := arena.Alloc(stack, 16)
	if err != nil {
		return nil, err
	}
	c := &cloneCall{}
	args, mem, err := arena.Alloc(cloneArgsSize, 8)
	if err != nil {
		return nil, err
	}
	pidfdAddr, pidfd, err := arena.Alloc(8, 8)
	if err != nil {
		return nil, err
	}
	setTID, ids, err := arena.Alloc(8, 8)
	if err != nil {
		return nil, err
	}
	if c.table, c.view, err = arena.Table(table); err != nil {
		return nil, err
	}
	c.args, c.pidfd = args, pidfd
	put := func(field int, v uint64) { binary.LittleEndian.PutUint64(mem[8*field:], v) }
	put(0, unix.CLONE_VM|unix.CLONE_VFORK|unix.CLONE_PIDFD|flags)
	put(1, pidfdAddr)
	put(4, uint64(unix.SIGCHLD))
	put(5, stackAddr)
	put(6, uint64(stack))
	if pid != 0 {
		binary.LittleEndian.PutUint32(ids, uint32(pid))
		put(8, setTID)
		put(9, 1)
	}
	return c, nil
}

// run clones with all signals blocked: no handler of Go's may run in the child.
func (c *cloneCall) run() (int64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	old, err := blockSignals()
	if err != nil {
		return 0, err
	}
	r := rawCloneTable(uintptr(c.args), cloneArgsSize, uintptr(c.table))
	return r, setSignals(old)
}

// check says what the child did before it left our memory. The last call that
// was begun and has no result is the execve that succeeded.
func (c *cloneCall) check(table []Call) error {
	results, err := DecodeResults(nil, c.view)
	if err != nil {
		return err
	}
	for i, r := range results {
		if r == NotRun {
			return nil
		}
		// An execve that returns has failed, whatever its entry allows.
		nr := table[i].NR &^ MayFail
		if r < 0 && r >= -4095 && (table[i].NR&MayFail == 0 || nr == unix.SYS_EXECVE || nr == unix.SYS_EXECVEAT) {
			return &CallError{Index: i, Call: table[i], Errno: syscall.Errno(-r)}
		}
	}
	return errors.New("the table of system calls has no execve")
}

// reap waits for a child that is about to end, even one that traces itself.
func reap(child int) error {
	for {
		var st unix.WaitStatus
		_, err := unix.Wait4(child, &st, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for process %d: %w", child, err)
		case st.Exited() || st.Signaled():
			return nil
		default:
			if err := unix.Kill(child, unix.SIGKILL); err != nil {
				return fmt.Errorf("kill process %d: %w", child, err)
			}
		}
	}
}
