package proc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// An Injector runs tables of system calls in the stopped threads of a process,
// as if they made them, and leaves no trace in them. It holds a region of the
// process's memory for that, from NewInjector to Close.
//
// How a table is run, and why the process is not harmed if we die meanwhile:
//
//  1. The table, its data, and a signal frame with the thread's true context
//     are written into the region, which already holds the loop (EndSignal).
//  2. The registers are set to the loop, then all signals but SIGURG blocked.
//  3. The thread goes on. Behind the table the loop sends SIGURG to itself.
//  4. A traced thread stops for that, even if it ignores the signal. We know
//     our own by sender and place, put back mask and then registers, and the
//     thread does not get it.
//  5. If we are dead there is no stop. SIGURG is ignored, or handled by a
//     handler that must expect it at any time, and the loop goes on into
//     rt_sigreturn, which takes mask and registers from the frame. The region
//     stays, and an interrupted system call may end with EINTR.
//
// In each moment in which the mask differs from the true one the registers lie
// in the loop, on the way to the frame. The region itself is mapped and
// unmapped by way of a detour, of which the same holds. TestTracerDies shows it.
type Injector struct {
	t      *Tracer
	pid    int
	vdso   page.Range
	end    uint64 // address behind the loop's own SYSCALL that sends the signal
	nspid  int    // the process's id as it sees it itself
	nested bool   // it is in a pid namespace below ours
	region page.Range
	arena  *Arena
	kept   bool // a thread is in the region that cannot be stopped
}

// The region, from its start: the loop and what its ending needs, the arena,
// a stack for a handler of SIGURG, the signal frame.
const (
	injectEnding = 512
	injectArena  = page.Size
	injectStack  = 32 << 10
	injectFrame  = 16 << 10

	injectSignal = unix.SIGURG
)

// ErrSeccomp says that a process has system call filters, which could take
// calls of ours for an attack.
var ErrSeccomp = errors.New("the process has system call filters (seccomp)")

// InjectorOptions size an injector. The zero value will do for tables of a few
// hundred calls.
type InjectorOptions struct {
	Arena int // bytes for tables and data; 0: 48 KiB
}

// NewInjector maps the region in a process all of whose threads are seized and
// stopped; vmas are its mappings. Errors: ErrNoVDSO, ErrSeccomp, ErrCompat,
// *CallError where the process may not map memory (to execute, too).
func (t *Tracer) NewInjector(pid int, vmas []VMA, opts InjectorOptions) (*Injector, error) {
	if opts.Arena == 0 {
		opts.Arena = 48 << 10
	}
	size := injectArena + uint64(page.Addr(opts.Arena).Up()) + injectStack + injectFrame
	vdso, err := findVDSO(vmas)
	if err != nil {
		return nil, fmt.Errorf("run system calls in process %d: %w", pid, err)
	}
	s, err := ReadStatus(pid)
	if err != nil {
		return nil, err
	}
	in := &Injector{t: t, pid: pid, vdso: vdso, nspid: pid}
	if s.Seccomp != 0 {
		return nil, fmt.Errorf("run system calls in process %d: %w", pid, ErrSeccomp)
	}
	if n := len(s.NSpid); n > 1 {
		in.nspid, in.nested = s.NSpid[n-1], true
	}
	call := Call{NR: unix.SYS_MMAP, Args: [6]uint64{
		0, size, unix.PROT_READ | unix.PROT_WRITE | unix.PROT_EXEC, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS, ^uint64(0), 0,
	}}
	ret, err := in.step(call)
	if err != nil {
		return nil, fmt.Errorf("map a region in process %d: %w", pid, err)
	}
	at := uint64(ret)
	in.region = page.RangeOf(page.Addr(at), size)
	in.arena = ArenaAt(at+injectArena, opts.Arena)
	code := LoopCode(EndSignal)
	in.end = at + uint64(signalReturn(code))
	if _, err := WriteMemory(pid, at, code); err != nil {
		return nil, errors.Join(err, in.Close())
	}
	return in, nil
}

// signalReturn is the offset behind the SYSCALL that sends the signal: the
// second of three.
func signalReturn(code []byte) int {
	first := bytes.Index(code, syscallInsn) + len(syscallInsn)
	return first + bytes.Index(code[first:], syscallInsn) + len(syscallInsn)
}

// step makes one system call in the process's first thread.
func (in *Injector) step(c Call) (ret int64, err error) {
	err = in.t.Do(func() error {
		place, err := in.t.detourPlace(in.pid, in.vdso)
		if err != nil {
			return err
		}
		ret, err = in.t.detourSyscall(in.pid, place, c.NR, c.Args[:]...)
		return err
	})
	if errno, failed := Errno(ret); err == nil && failed {
		err = &CallError{Call: c, Errno: errno}
	}
	return ret, err
}

// Region is the memory that the injector holds in the process: it is listed
// among the process's mappings, and not the process's own.
func (in *Injector) Region() page.Range { return in.region }

// Arena is the memory for the data of calls, as the process sees it. What the
// calls of a Run write there is in the arena's views when it returns.
func (in *Injector) Arena() *Arena { return in.arena }

// Close unmaps the region, unless there is a thread in it that cannot be stopped. The
// process's first thread must still be stopped.
func (in *Injector) Close() error {
	if in.region.Empty() || in.kept {
		return nil
	}
	r := in.region
	in.region = page.Range{}
	_, err := in.step(Call{NR: unix.SYS_MUNMAP, Args: [6]uint64{uint64(r.Start), r.Len()}})
	if err != nil {
		return fmt.Errorf("unmap the region in process %d: %w", in.pid, err)
	}
	return nil
}

// Run has a stopped thread make the calls of a table and appends their results
// to dst. Whatever the error, the thread stands as it did before: an
// interrupted system call goes on when it does, a signal that comes meanwhile
// waits. Only one that hangs in a call and cannot be stopped in it stays there: when
// the call ends, and it is not traced any more, it leaves the region as it does where we
// die. There is no other Run then. The arena is empty afterwards; its views stay readable until the next
// use. Errors: *CallError where a call failed that may not, *ExitError.
func (in *Injector) Run(tid int, calls []Call, dst []int64) ([]int64, error) {
	base := len(dst)
	err := in.t.Do(func() error {
		addr, table, err := in.arena.Table(calls)
		if err != nil {
			return err
		}
		defer func() { in.arena.used = 0 }()
		if err := in.run(tid, addr); err != nil {
			return err
		}
		dst, err = DecodeResults(dst, table)
		return err
	})
	if err == nil {
		err = CheckResults(calls, dst[base:])
	}
	if err != nil {
		return dst[:base], fmt.Errorf("run %d system calls in task %d: %w", len(calls), tid, err)
	}
	return dst, nil
}

// errKept says that a thread is in the region that has not stopped.
var errKept = errors.New("another thread hangs in a system call that was run in it")

// injection is one run in one thread.
type injection struct {
	*Injector
	k       *task
	regs    Regs // the true ones
	mask    uint64
	self    uint64            // the thread's id as it sees it itself
	foreign [SiginfoSize]byte // a signal like ours that somebody else sent
	caught  bool              // there was one
	away    bool              // it has ended, or does not stop
}

func (in *Injector) run(tid int, table uint64) (err error) {
	if in.kept {
		return errKept
	}
	k := in.t.tasks[tid]
	if k == nil || !k.stopped {
		return ErrNoProcess
	}
	j := &injection{Injector: in, k: k}
	if j.regs, err = in.t.context(k); err != nil {
		return err
	}
	if j.mask, err = getSigMask(tid); err != nil {
		return taskError("read the signal mask of", tid, err)
	}
	loop, err := j.lay(table)
	if err != nil {
		return err
	}
	if err := j.enter(&loop); err != nil {
		return errors.Join(err, j.leave())
	}
	err = j.wait()
	if err == nil && j.caught {
		err = j.requeue()
	}
	if err = errors.Join(err, j.leave()); err != nil {
		return err
	}
	_, err = ReadMemory(in.pid, in.arena.base, in.arena.Bytes())
	return err
}

// lay writes into the region what the loop needs, and gives the registers to
// begin with.
func (j *injection) lay(table uint64) (Regs, error) {
	xstate, err := j.t.xstate(j.k.tid)
	if err != nil {
		return Regs{}, err
	}
	start, frameAt := uint64(j.region.Start), uint64(j.region.End)-injectFrame
	after := j.regs.interrupted()
	frame, err := layFrame(frameAt, &after, j.mask, xstate)
	if err != nil {
		return Regs{}, err
	}
	if len(frame.mem) > injectFrame {
		return Regs{}, fmt.Errorf("the extended registers need %d bytes of %d", len(frame.mem), injectFrame)
	}
	if j.self, err = j.ownID(); err != nil {
		return Regs{}, err
	}
	var ending []byte
	for _, v := range [...]uint64{uint64(j.nspid), j.self, uint64(injectSignal), frame.sp} {
		ending = binary.LittleEndian.AppendUint64(ending, v)
	}
	_, err = WriteMemoryV(j.pid, []Transfer{
		{start + injectEnding, ending}, {j.arena.base, j.arena.Bytes()}, {frameAt, frame.mem},
	})
	loop := j.regs.call(start, 0, nil)
	loop[R12], loop[R13], loop[RSP] = table, start+injectEnding, frameAt
	return loop, err
}

// ownID is the thread's id as it sees it itself.
func (j *injection) ownID() (uint64, error) {
	if !j.nested {
		return uint64(j.k.tid), nil
	}
	s, err := ReadStatus(j.k.tid)
	if err != nil || len(s.NSpid) == 0 {
		return uint64(j.k.tid), err
	}
	return uint64(s.NSpid[len(s.NSpid)-1]), nil
}

// enter puts the thread into the loop, and leave puts it back: the mask is
// changed after the one and before the other.
func (j *injection) enter(loop *Regs) error {
	if err := setRegs(j.k.tid, loop); err != nil {
		return taskError("set the registers of", j.k.tid, err)
	}
	const open = ^uint64(1 << (injectSignal - 1))
	return taskError("set the signal mask of", j.k.tid, setSigMask(j.k.tid, open))
}

func (j *injection) leave() error {
	if j.away {
		return nil
	}
	err := taskError("set the signal mask of", j.k.tid, setSigMask(j.k.tid, j.mask))
	return errors.Join(err, taskError("set the registers of", j.k.tid, setRegs(j.k.tid, &j.regs)))
}

// wait lets the thread run until it stops with our signal at the loop's end.
func (j *injection) wait() error {
	deadline := j.t.deadline()
	sig := unix.Signal(0)
	for {
		if err := j.t.Cont(j.k.tid, sig); err != nil {
			return err
		}
		stop, err := j.t.wait(j.k.tid, deadline)
		if err != nil {
			return j.lost(err)
		}
		sig = 0
		switch {
		case stop.Kind == StopSignal && stop.Signal == injectSignal:
			done, err := j.ours()
			if err != nil {
				return err
			}
			if done {
				j.k.ours = true
				return nil
			}
		case stop.Kind == StopSignal && stop.Signal == unix.SIGSTOP:
			sig = stop.Signal // cannot be blocked; the stop of the process that follows is passed over
		case stop.Kind == StopSignal:
			j.k.ours = true // a fault of the loop's
			return fmt.Errorf("it got %v", stop.Signal)
		}
	}
}

// lost says what to do with a thread that did not stop as expected: one that
// has ended is no more; one that hangs in a call is stopped in it, or keeps the region.
func (j *injection) lost(err error) error {
	var stuck *StuckError
	if !errors.As(err, &stuck) {
		j.away = true
		return err
	}
	if herr := j.t.halt(j.k); herr != nil {
		j.away, j.kept = true, errors.As(herr, &stuck)
		return errors.Join(err, herr)
	}
	return err
}

// ours looks at a signal like ours: done, if the thread is at the loop's end.
// One that somebody else sent is kept.
func (j *injection) ours() (done bool, err error) {
	var regs Regs
	var info [SiginfoSize]byte
	if err := getRegs(j.k.tid, &regs); err != nil {
		return false, taskError("read the registers of", j.k.tid, err)
	}
	if err := getSiginfo(j.k.tid, &info); err != nil {
		return false, taskError("read the signal of", j.k.tid, err)
	}
	const user, tkill = 0, -6 // SI_USER, SI_TKILL
	le := binary.LittleEndian
	code, pid := int32(le.Uint32(info[8:])), int(le.Uint32(info[16:]))
	done = regs[RIP] == j.end
	// Where the queue of signals is full the kernel makes one up that is from nobody.
	if !done || (code != tkill || pid != j.nspid) && (code != user || pid != 0) {
		j.foreign, j.caught = info, true
	}
	return done, nil
}

// requeue gives the thread back the signal that somebody else sent: with the
// signal blocked the kernel does not deliver it but queues it again.
func (j *injection) requeue() error {
	if err := setSigMask(j.k.tid, ^uint64(0)); err != nil {
		return taskError("set the signal mask of", j.k.tid, err)
	}
	if err := setSiginfo(j.k.tid, &j.foreign); err != nil {
		return taskError("set the signal of", j.k.tid, err)
	}
	if err := j.t.poke(j.k); err != nil {
		return err
	}
	if err := j.t.Cont(j.k.tid, injectSignal); err != nil {
		return err
	}
	for {
		stop, err := j.t.wait(j.k.tid, j.t.deadline())
		if err != nil {
			return j.lost(err)
		}
		if stop.Kind == StopInterrupt || stop.Kind == StopGroup {
			return nil
		}
		if err := j.t.Cont(j.k.tid, 0); err != nil {
			return err
		}
	}
}
