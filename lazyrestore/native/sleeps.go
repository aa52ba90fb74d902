package native

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A thread that sleeps for a time (nanosleep, poll, a futex) is brought back
// into its sleep: it makes the call again with the time that was left, is
// interrupted in it, and then gets the registers that it had, with which the
// kernel has it sleep on. So its program sees nothing: neither another timeout
// in a register, nor EINTR.

// Sleep is a system call that a thread was in for a time.
type Sleep struct {
	Call uint64 // 1 + its number; 0: none, or one that can be made again as it is
	Left uint64 // nanoseconds
}

// sleeps codes section 70.
func (c *coder) sleeps(st *State) {
	for i := range st.Threads {
		c.u64(&st.Threads[i].Sleep.Call)
		c.u64(&st.Threads[i].Sleep.Left)
	}
}

func (s *Sleep) number() uint64 { return s.Call - 1 }

// sleep looks how long a thread has still to sleep, and which call it sleeps in.
// Where the kernel does not tell the time (there is no tracefs, or no privilege)
// and has not written it where the program asked for it, the call will be made
// again in full.
func (f *Frozen) sleep(th *Thread) error {
	if !sleeps(&th.Regs) {
		return nil
	}
	nr := sleepCall(&th.Regs)
	if nr != restartSyscall && !timed(nr, &th.Regs) {
		return nil
	}
	s, err := f.tracer.Resleep(th.TID)
	if err != nil {
		return err
	}
	if s.Over {
		if th.Regs, err = f.tracer.GetRegs(th.TID); err == nil {
			th.XState, err = f.tracer.GetXState(th.TID) // a handler begins with others
		}
		return err
	}
	if nr == restartSyscall {
		if nr = callIn(s.Where, &th.Regs); nr == 0 {
			return nil // it will return EINTR
		}
		setSleepCall(&th.Regs, nr)
	}
	if !timed(nr, &th.Regs) {
		return nil
	}
	th.Sleep.Left, err = f.left(nr, th, s.Until)
	if err == nil && th.Sleep.Left != 0 {
		th.Sleep.Call = nr + 1
	}
	return err
}

// left is how much of a sleep is left; 0: not known.
func (f *Frozen) left(nr uint64, th *Thread, until int64) (uint64, error) {
	if name, clock := sleepClock(nr, &th.Regs); until != 0 && name != "" {
		var now unix.Timespec
		if err := unix.ClockGettime(clock, &now); err != nil {
			return 0, fmt.Errorf("read the clock %s: %w", name, err)
		}
		own, err := ownOffset(name)
		if err != nil {
			return 0, err
		}
		return uint64(max(until-(now.Nano()-own), 1)), nil
	}
	if at := remainderAt(nr, &th.Regs); at != 0 {
		var b [16]byte
		if _, err := f.mem.ReadAt(b[:], int64(at)); err == nil {
			return getWord(b[:])*uint64(time.Second) + getWord(b[8:]), nil
		}
	}
	return 0, nil
}

// callIn tells the call from where in the kernel a thread sleeps.
func callIn(where string, r *proc.Regs) uint64 {
	switch {
	case where == "":
		return 0
	case strings.Contains(where, "poll"):
		return unix.SYS_POLL
	case strings.Contains(where, "futex"):
		return unix.SYS_FUTEX
	}
	return nanosleepOf(r)
}

// sleepWords are what the call reads and writes in the process's memory: it is
// made before there is a pager.
func (th *Thread) sleepWords() []page.Range {
	if th.Sleep.Call == 0 {
		return nil
	}
	var rs []page.Range
	for _, w := range sleepMemory(th.Sleep.number(), &th.Regs) {
		if w[0] != 0 && w[1] != 0 {
			rs = append(rs, page.Range{Start: page.Addr(w[0]).Down(), End: page.Addr(w[0] + w[1]).Up()})
		}
	}
	return rs
}

// sleepStep is the call as a step of a thread's table.
func (b *builder) sleepStep(t *table, th *Thread) {
	if th.Sleep.Call != 0 {
		args := b.sleepArgs(th)
		t.call("sleep on", uintptr(th.Sleep.number()), args[:]...).mayFail()
	}
}

// sleepArgs places the time that is left.
func (b *builder) sleepArgs(th *Thread) [6]uint64 {
	left := th.Sleep.Left
	addr, ts := b.prog.alloc(16)
	binary.NativeEndian.PutUint64(ts, left/uint64(time.Second))
	binary.NativeEndian.PutUint64(ts[8:], left%uint64(time.Second))
	return withTime(th.Sleep.number(), &th.Regs, addr, left)
}

// asleep looks, once a thread other than the first is stopped, how its sleep
// came out, and gives the registers that it goes on with.
func (b *builder) asleep(tr *proc.Tracer, i int) (proc.Regs, error) {
	th, tid, t := &b.st.Threads[i], b.tids[i], b.threadTables[i-1]
	for deadline := time.Now().Add(10 * time.Second); ; {
		if ret, done := b.prog.result(t, len(t.steps)-2); done {
			return awake(&th.Regs, ret), nil
		}
		regs, err := tr.GetRegs(tid)
		if err != nil {
			return regs, err
		}
		if sleeps(&regs) {
			return stillAsleep(&th.Regs), nil
		}
		if time.Now().After(deadline) {
			return regs, fmt.Errorf("thread %d does not sleep on", th.TID)
		}
		if err := tr.LetRun(tid); err != nil { // it was on its way
			return regs, err
		}
	}
}

// leaderAsleep brings the first thread into its sleep. It is unmapped from the
// program afterwards, which leaves the sleep alone.
func (b *builder) leaderAsleep(tr *proc.Tracer) (*proc.Regs, error) {
	th := &b.st.Threads[0]
	if th.Sleep.Call == 0 {
		return nil, nil
	}
	insn, err := b.syscallInsn()
	if err != nil {
		return nil, err
	}
	args := b.sleepArgs(th)
	if b.prog.err != nil {
		return nil, b.prog.err
	}
	slept, ret, err := tr.EnterSleep(b.pid, insn, th.Sleep.number(), args[:]...)
	if err != nil {
		return nil, err
	}
	regs := awake(&th.Regs, ret)
	if slept {
		regs = stillAsleep(&th.Regs)
	}
	return &regs, nil
}

func (th *Thread) validSleep() error {
	switch th.Sleep.Call {
	case 0, unix.SYS_POLL + 1, unix.SYS_FUTEX + 1, unix.SYS_NANOSLEEP + 1, unix.SYS_CLOCK_NANOSLEEP + 1:
		return nil
	}
	return errors.New("a sleep in a system call that does not sleep")
}
