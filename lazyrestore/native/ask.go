package native

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// ask learns from the process itself what no other can tell: it runs system
// calls in its threads.
func (f *Frozen) ask() error {
	insn, err := proc.SyscallInsn(f.pid, f.c.smaps.VMAs)
	if err != nil {
		return err
	}
	const scratch = 4 << 10
	at, err := f.tracer.StepSyscall(f.pid, insn, unix.SYS_MMAP, 0, scratch, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uint64(0), 0)
	if errno, failed := proc.Errno(at); err != nil || failed {
		return fmt.Errorf("map memory in process %d: %w %w", f.pid, err, errno)
	}
	q := &questions{f: f, insn: insn, at: uint64(at)}
	err = q.all()
	_, uerr := f.tracer.StepSyscall(f.pid, insn, unix.SYS_MUNMAP, uint64(at), scratch)
	if err == nil {
		err = uerr
	}
	return err
}

// questions runs single system calls whose answer lies in a page of the process.
type questions struct {
	f    *Frozen
	insn uint64
	at   uint64
	err  error
}

// call runs a system call in a thread; n is how much of the page it fills.
func (q *questions) call(tid, n int, nr uint64, args ...uint64) (int64, []byte) {
	if q.err != nil {
		return 0, make([]byte, n)
	}
	ret, err := q.f.tracer.StepSyscall(tid, q.insn, nr, args...)
	if errno, failed := proc.Errno(ret); err == nil && failed {
		err = fmt.Errorf("system call %d in thread %d: %w", nr, tid, errno)
	}
	b := make([]byte, n)
	if err == nil && n > 0 {
		_, err = proc.ReadMemory(q.f.pid, q.at, b)
	}
	q.err = err
	return ret, b
}

func (q *questions) all() error {
	st, pid := q.f.c.st, q.f.pid
	for sig := uint64(1); sig <= numSignals; sig++ {
		_, b := q.call(pid, 32, unix.SYS_RT_SIGACTION, sig, 0, q.at, sigSetSize)
		st.Actions = append(st.Actions, Action{getWord(b), getWord(b[8:]), getWord(b[16:]), getWord(b[24:])})
	}
	for which := range st.Timers {
		_, b := q.call(pid, 32, unix.SYS_GETITIMER, uint64(which), q.at)
		st.Timers[which] = Interval{getWord(b), getWord(b[8:]), getWord(b[16:]), getWord(b[24:])}
	}
	brk, _ := q.call(pid, 0, unix.SYS_BRK, 0)
	st.MM.Brk = uint64(brk)
	_, b := q.call(pid, 8, unix.SYS_PRCTL, unix.PR_GET_PDEATHSIG, q.at)
	st.PDeathSig = getWord(b) & 0xffffffff
	dumpable, _ := q.call(pid, 0, unix.SYS_PRCTL, unix.PR_GET_DUMPABLE)
	st.Dumpable = uint64(dumpable)
	_, b = q.call(pid, 8, unix.SYS_PRCTL, unix.PR_GET_CHILD_SUBREAPER, q.at)
	st.Subreaper = getWord(b)&0xffffffff != 0
	for i := range st.Threads {
		th := &st.Threads[i]
		_, b := q.call(th.TID, 24, unix.SYS_SIGALTSTACK, 0, q.at)
		th.AltStack = AltStack{SP: getWord(b), Flags: getWord(b[8:]) & 0xffffffff, Size: getWord(b[16:])}
		_, b = q.call(th.TID, 8, unix.SYS_PRCTL, unix.PR_GET_TID_ADDRESS, q.at)
		th.ClearTID = getWord(b)
	}
	return q.err
}
