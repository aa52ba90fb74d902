package native

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Sched is what sched_getattr(2) tells of a thread beyond policy, priority
// and nice value. All zeros: nothing that a new thread has not.
type Sched struct {
	Flags                     uint64 // SCHED_FLAG_ bits
	Runtime, Deadline, Period uint64 // of SCHED_DEADLINE, nanoseconds; Runtime alone: a slice asked for
	UtilMin, UtilMax          uint64 // utilisation clamps, where UtilMax is not 0
}

// MemPolicy is the NUMA memory policy of a thread, see set_mempolicy(2), or of a
// mapping.
type MemPolicy struct {
	Mode  uint64   // MPOL_ constant with its flags; 0: the default
	Nodes []uint64 // bit mask, without the zeros at its end
}

// schedulings codes what threads have beyond the fixed part, section 65.
func (c *coder) schedulings(st *State) {
	for i := range st.Threads {
		th := &st.Threads[i]
		s := &th.Sched
		for _, v := range []*uint64{
			&s.Flags, &s.Runtime, &s.Deadline, &s.Period, &s.UtilMin, &s.UtilMax,
			&th.IOPriority, &th.TimerSlack, &th.MemPolicy.Mode,
		} {
			c.u64(v)
		}
		nums(c, &th.MemPolicy.Nodes)
	}
}

const (
	maxUtil = 1024 // SCHED_CAPACITY_SCALE

	ioprioWhoProcess = 1 // IOPRIO_WHO_PROCESS: in truth a thread
	maxNodes         = 1024
	nodeBytes        = maxNodes / 8
)

// scheduling reads how a thread is scheduled. The calling thread is taken for
// an ordinary one, to compare with.
func (f *Frozen) scheduling(th *Thread) error {
	a, err := unix.SchedGetAttr(th.TID, 0)
	if err != nil {
		return fmt.Errorf("get its scheduling: %w", err)
	}
	th.Policy, th.Priority = uint64(a.Policy), uint64(a.Priority)
	if th.Nice, err = niceOf(th.TID, a); err != nil {
		return fmt.Errorf("get its nice value: %w", err)
	}
	own, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return fmt.Errorf("get our scheduling: %w", err)
	}
	th.Sched = schedOf(a, own)
	if prio, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ioprioWhoProcess, uintptr(th.TID), 0); errno == 0 {
		th.IOPriority = uint64(prio)
	}
	var set, all unix.CPUSet
	if err := unix.SchedGetaffinity(th.TID, &set); err != nil {
		return fmt.Errorf("get its CPU affinity: %w", err)
	}
	if err := unix.SchedGetaffinity(1, &all); err == nil && set == all {
		return nil // not bound, as far as can be told
	}
	for _, w := range set {
		th.Affinity = append(th.Affinity, uint64(w))
	}
	return nil
}

// schedOf leaves out what an ordinary thread of this machine has too.
func schedOf(a, ordinary *unix.SchedAttr) Sched {
	s := Sched{Flags: a.Flags, Runtime: a.Runtime, Deadline: a.Deadline, Period: a.Period}
	if a.Policy != unix.SCHED_DEADLINE && s.Runtime == ordinary.Runtime {
		s.Runtime = 0 // the slice of all
	}
	least := uint32(0)
	if a.Policy == unix.SCHED_FIFO || a.Policy == unix.SCHED_RR {
		least = maxUtil // real-time threads ask for all
	}
	if ordinary.Util_max != 0 && (a.Util_min != least || a.Util_max != maxUtil) {
		s.UtilMin, s.UtilMax = uint64(a.Util_min), uint64(a.Util_max)
	}
	return s
}

// ownScheduling is what the new process inherits from the calling thread.
type ownScheduling struct {
	policy     uint64
	priority   uint64
	nice       int64
	ioPriority uint64
	timerSlack uint64
	mode       uint64 // of the memory policy
}

// inherits looks at the calling thread.
func (o *ownScheduling) inherits() {
	if a, err := unix.SchedGetAttr(0, 0); err == nil {
		o.policy, o.priority = uint64(a.Policy), uint64(a.Priority)
		o.nice, _ = niceOf(0, a)
		// See sched_fork in the kernel's kernel/sched/core.c.
		switch {
		case a.Flags&unix.SCHED_FLAG_RESET_ON_FORK == 0:
		case isRealTime(o.policy):
			o.policy, o.priority, o.nice = unix.SCHED_NORMAL, 0, 0
		default:
			o.nice = max(o.nice, 0)
		}
	}
	if prio, _, errno := unix.RawSyscall(unix.SYS_IOPRIO_GET, ioprioWhoProcess, 0, 0); errno == 0 {
		o.ioPriority = uint64(prio)
	}
	if slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); err == nil {
		o.timerSlack = uint64(slack)
	}
	if mode, err := memoryMode(); err == nil {
		o.mode = mode
	}
}

// niceOf is the nice value of the thread that a is of, 0: the calling one. A real-time thread has one too, for when it is one no
// more, but sched_getattr does not tell it.
func niceOf(tid int, a *unix.SchedAttr) (int64, error) {
	if !isRealTime(uint64(a.Policy)) {
		return int64(a.Nice), nil
	}
	rank, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
	if err != nil {
		return 0, os.NewSyscallError("getpriority", err)
	}
	return 20 - int64(rank), nil // the system call's own value, see getpriority(2)
}

func isRealTime(policy uint64) bool {
	return policy == unix.SCHED_FIFO || policy == unix.SCHED_RR || policy == unix.SCHED_DEADLINE
}

// take has the calling thread, and with it the new process, take a timer slack.
func (o *ownScheduling) take(slack uint64) error {
	if slack == 0 {
		return nil
	}
	o.timerSlack = slack
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0))
}

// schedulingSteps plans how a thread is scheduled: the processors first, then
// what may depend on them.
func (b *builder) schedulingSteps(t *table, th *Thread) {
	own := &b.own
	if len(th.Affinity) > 0 {
		t.call("set the CPU affinity", unix.SYS_SCHED_SETAFFINITY, 0, uint64(8*len(th.Affinity)), b.prog.words(th.Affinity...)).
			mayFail().warns(fmt.Sprintf("thread %d: this machine lacks the processors that it is bound to", th.TID))
	}
	if slack := b.st.slackOf(th); slack != own.timerSlack && slack != 0 {
		t.call("set the timer slack", unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, slack)
	}
	if th.IOPriority != own.ioPriority {
		t.call("set the I/O priority", unix.SYS_IOPRIO_SET, ioprioWhoProcess, 0, th.IOPriority).
			mayFail().warns(fmt.Sprintf("thread %d: its I/O priority is not kept", th.TID))
	}
	if m := &th.MemPolicy; m.Mode != own.mode || len(m.Nodes) > 0 {
		var nodes, n uint64
		if len(m.Nodes) > 0 {
			nodes, n = b.prog.words(m.Nodes...), uint64(64*len(m.Nodes)+1)
		}
		t.call("set the memory policy", unix.SYS_SET_MEMPOLICY, m.Mode, nodes, n).
			mayFail().warns(fmt.Sprintf("thread %d: this machine lacks the NUMA nodes of its memory policy", th.TID))
	}
	if th.Sched != (Sched{}) {
		t.call("set the scheduling", unix.SYS_SCHED_SETATTR, 0, b.schedAttr(th), 0)
		if !isRealTime(th.Policy) {
			return // with its nice value
		}
	} else if th.Policy != own.policy || th.Priority != own.priority {
		addr, param := b.prog.alloc(8)
		binary.NativeEndian.PutUint32(param, uint32(th.Priority))
		t.call("set the scheduling policy", unix.SYS_SCHED_SETSCHEDULER, 0, th.Policy, addr)
	}
	if th.Nice != own.nice {
		t.call("set the nice value", unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 0, uint64(th.Nice)).mayFail()
	}
}

// schedAttr places th's struct sched_attr.
func (b *builder) schedAttr(th *Thread) uint64 {
	s, flags := &th.Sched, th.Sched.Flags
	if s.UtilMax != 0 {
		flags |= unix.SCHED_FLAG_UTIL_CLAMP
	}
	addr, a := b.prog.alloc(unix.SizeofSchedAttr)
	le := binary.NativeEndian
	le.PutUint32(a, unix.SizeofSchedAttr)
	le.PutUint32(a[4:], uint32(th.Policy))
	le.PutUint64(a[8:], flags)
	le.PutUint32(a[16:], uint32(th.Nice))
	le.PutUint32(a[20:], uint32(th.Priority))
	le.PutUint64(a[24:], s.Runtime)
	le.PutUint64(a[32:], s.Deadline)
	le.PutUint64(a[40:], s.Period)
	le.PutUint32(a[48:], uint32(s.UtilMin))
	le.PutUint32(a[52:], uint32(s.UtilMax))
	return addr
}

// slackOf is a thread's timer slack; images of before that was kept have the
// first thread's only.
func (st *State) slackOf(th *Thread) uint64 {
	if th.TimerSlack != 0 {
		return th.TimerSlack
	}
	return st.TimerSlack
}

// askScheduling are the calls that tell a thread's own policies, with where
// their answers lie.
func (q *questions) askScheduling(th *Thread) []asked {
	mode, nodes := q.room(8), q.room(nodeBytes)
	return []asked{
		{call(unix.SYS_PRCTL, unix.PR_GET_TIMERSLACK), func(slack int64) {
			if uint64(slack) != q.f.c.st.TimerSlack {
				th.TimerSlack = uint64(slack)
			}
		}},
		{call(unix.SYS_GET_MEMPOLICY|proc.MayFail, q.at+mode, q.at+nodes, maxNodes, 0, 0), func(ret int64) {
			if ret < 0 {
				return // a kernel without NUMA
			}
			th.MemPolicy = q.policy(mode, nodes)
		}},
	}
}

// validScheduling bounds what a state may ask for.
func (th *Thread) validScheduling() error {
	if len(th.MemPolicy.Nodes) > maxNodes/64 {
		return errors.New("a memory policy of more nodes than a kernel has")
	}
	return nil
}
