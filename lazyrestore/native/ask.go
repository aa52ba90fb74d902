package native

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// ask learns from the process itself what no other can tell: it runs tables of
// system calls in its threads, whose answers lie in memory that the injector
// holds there.
func (f *Frozen) ask() (err error) {
	if f.c.mute {
		return nil
	}
	in, err := f.tracer.NewInjector(f.pid, f.c.smaps.VMAs, proc.InjectorOptions{})
	if errors.Is(err, proc.ErrSeccomp) || errors.Is(err, proc.ErrNoVDSO) {
		return nil // a reason to refuse that is known already
	}
	if errors.Is(err, unix.EACCES) {
		f.c.refused.add("memory that is executed", "the process may not map any that it can write, too (PR_SET_MDWE, or a security module)", "")
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	q := &questions{f: f, in: in}
	if err := q.ask(f.pid, processAnswers, q.process); err != nil {
		return err
	}
	for _, more := range [...]func() error{q.askTimers, q.policies, q.lockFuture} {
		if err := more(); err != nil {
			return err
		}
	}
	for i := range f.c.st.Threads {
		th := &f.c.st.Threads[i]
		var ring int64
		list := func() []asked { return append(q.thread(th), askRing(0, func(ret int64) { ring = ret })) }
		if err := q.ask(th.TID, threadAnswers, list); err != nil {
			return err
		}
		if err := q.rings(th, ring); err != nil {
			return err
		}
	}
	return nil
}

// questions runs tables whose answers lie in one piece of memory.
type questions struct {
	f       *Frozen
	in      *proc.Injector
	at      uint64 // of the answers to the next table, in the process
	answers []byte // the same, once it has been run
	used    int    // of answers
}

// An asked is one system call of a table, and what is done with its result.
type asked struct {
	call   proc.Call
	answer func(ret int64)
}

// Room for the answers to one table; it is copied there and back.
const (
	processAnswers = 4 << 10
	threadAnswers  = 512
)

// ask has a thread answer questions, whose answers take at most room bytes.
func (q *questions) ask(tid, room int, list func() []asked) (err error) {
	q.used = 0
	if q.at, q.answers, err = q.in.Arena().Alloc(room, 16); err != nil {
		return err
	}
	questions := list()
	if q.used > room {
		return fmt.Errorf("ask task %d: the answers need %d bytes of %d", tid, q.used, room)
	}
	calls := make([]proc.Call, len(questions))
	for i := range questions {
		calls[i] = questions[i].call
	}
	results, err := q.in.Run(tid, calls, nil)
	if err != nil {
		return err
	}
	for i, ret := range results {
		if f := questions[i].answer; f != nil {
			f(ret)
		}
	}
	return nil
}

// room sets memory aside for one answer and gives its place among them.
func (q *questions) room(n int) uint64 {
	at := q.used
	q.used += (n + 15) &^ 15
	return uint64(at)
}

func (q *questions) word(at uint64) uint64 { return getWord(q.answers[at:]) }

func call(nr uint64, args ...uint64) proc.Call {
	c := proc.Call{NR: nr}
	copy(c.Args[:], args)
	return c
}

const (
	actionSize = 32 // struct sigaction of the kernel
	timerSize  = 32 // struct itimerval

	// Not in golang.org/x/sys: see <linux/membarrier.h> (Linux 6.3).
	membarrierGetRegistrations = 1 << 9
)

// process asks what is one for the whole process.
func (q *questions) process() []asked {
	st := q.f.c.st
	var list []asked
	for sig := range uint64(numSignals) {
		at := q.room(actionSize)
		list = append(list, asked{call(unix.SYS_RT_SIGACTION, sig+1, 0, q.at+at, sigSetSize), func(int64) {
			st.Actions = append(st.Actions, Action{q.word(at), q.word(at + 8), q.word(at + 16), q.word(at + 24)})
		}})
	}
	for which := range st.Timers {
		at := q.room(timerSize)
		list = append(list, asked{call(unix.SYS_GETITIMER, uint64(which), q.at+at), func(int64) {
			st.Timers[which] = Interval{q.word(at), q.word(at + 8), q.word(at + 16), q.word(at + 24)}
		}})
	}
	deathSig, subreaper, xcompPerm := q.room(8), q.room(8), q.room(8)
	list = append(
		list,
		asked{call(unix.SYS_PRCTL, unix.PR_GET_PDEATHSIG, q.at+deathSig), func(int64) { st.PDeathSig = q.word(deathSig) & 0xffffffff }},
		asked{call(unix.SYS_PRCTL, unix.PR_GET_CHILD_SUBREAPER, q.at+subreaper), func(int64) { st.Subreaper = q.word(subreaper)&0xffffffff != 0 }},
		asked{call(unix.SYS_PRCTL, unix.PR_GET_SECUREBITS), func(ret int64) { st.Creds.SecureBits = uint64(ret) }},
		asked{call(unix.SYS_ARCH_PRCTL|proc.MayFail, archGetXCompPerm, q.at+xcompPerm), func(ret int64) {
			if ret == 0 && q.word(xcompPerm)&onRequest != 0 {
				q.f.c.refused.add("AMX", "the process has permission to use its tiles, which are not preserved", "")
			}
		}},
		asked{call(unix.SYS_MEMBARRIER|proc.MayFail, membarrierGetRegistrations, 0, 0), func(ret int64) {
			if ret > 0 {
				st.Membarrier = uint64(ret)
			}
		}},
		asked{call(unix.SYS_PRCTL, unix.PR_GET_DUMPABLE), func(ret int64) { st.Dumpable = uint64(ret) }},
		asked{call(unix.SYS_BRK, 0), func(ret int64) { st.MM.Brk = uint64(ret) }},
		// ECHILD says that there is nobody to wait for.
		asked{call(unix.SYS_WAITID|proc.MayFail, unix.P_ALL, 0, 0, unix.WNOHANG|unix.WNOWAIT|unix.WEXITED|unix.WALL, 0), func(ret int64) { q.f.c.waits = ret == 0 }},
	)
	list = append(list, q.askProcessSwitches()...)
	return append(list, q.askClocks()...)
}

// thread asks what each thread has of its own.
func (q *questions) thread(th *Thread) []asked {
	altStack, clearTID := q.room(24), q.room(8)
	list := []asked{
		{call(unix.SYS_SIGALTSTACK, 0, q.at+altStack), func(int64) {
			th.AltStack = AltStack{SP: q.word(altStack), Flags: q.word(altStack+8) & 0xffffffff, Size: q.word(altStack + 16)}
		}},
		{call(unix.SYS_PRCTL, unix.PR_GET_TID_ADDRESS, q.at+clearTID), func(int64) { th.ClearTID = q.word(clearTID) }},
	}
	list = append(list, q.askScheduling(th)...)
	return append(list, q.askSwitches(th)...)
}

func threadName(tid int) string { return "thread " + strconv.Itoa(tid) }
