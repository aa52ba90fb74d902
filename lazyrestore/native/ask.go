package native

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// ask learns from the process itself what no other can tell: it runs tables of
// system calls in its threads, whose answers lie in memory that the injector
// holds there.
func (f *Frozen) ask() (err error) {
	in, err := f.tracer.NewInjector(f.pid, f.c.smaps.VMAs, proc.InjectorOptions{})
	if errors.Is(err, proc.ErrSeccomp) || errors.Is(err, proc.ErrNoVDSO) {
		return nil // a reason to refuse that is known already
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	q := &questions{f: f, in: in}
	if err := q.process(); err != nil {
		return err
	}
	for i := range f.c.st.Threads {
		if err := q.thread(&f.c.st.Threads[i]); err != nil {
			return err
		}
	}
	return nil
}

// questions runs tables whose answers lie at known places of one piece of
// memory.
type questions struct {
	f       *Frozen
	in      *proc.Injector
	at      uint64 // of the answers to the next table, in the process
	answers []byte // the same, once it has been run
}

// Where answers lie.
const (
	actionSize  = 32 // struct sigaction of the kernel
	timersAt    = numSignals * actionSize
	timerSize   = 32 // struct itimerval
	deathSigAt  = timersAt + 3*timerSize
	subreaperAt = deathSigAt + 8
	altStackAt  = subreaperAt + 8
	clearTIDAt  = altStackAt + 24
	xcompPermAt = clearTIDAt + 8
	answerSize  = xcompPermAt + 8

	// Not in golang.org/x/sys: see <linux/membarrier.h> (Linux 6.3).
	membarrierGetRegistrations = 1 << 9
)

// begin sets memory aside for the answers of one table.
func (q *questions) begin() (err error) {
	q.at, q.answers, err = q.in.Arena().Alloc(answerSize, 16)
	return err
}

func (q *questions) word(at int) uint64 { return getWord(q.answers[at:]) }

func call(nr uint64, args ...uint64) proc.Call {
	c := proc.Call{NR: nr}
	copy(c.Args[:], args)
	return c
}

// process asks what is one for the whole process.
func (q *questions) process() error {
	if err := q.begin(); err != nil {
		return err
	}
	st := q.f.c.st
	var calls []proc.Call
	for sig := range uint64(numSignals) {
		calls = append(calls, call(unix.SYS_RT_SIGACTION, sig+1, 0, q.at+sig*actionSize, sigSetSize))
	}
	for which := range uint64(len(st.Timers)) {
		calls = append(calls, call(unix.SYS_GETITIMER, which, q.at+timersAt+which*timerSize))
	}
	calls = append(calls,
		call(unix.SYS_PRCTL, unix.PR_GET_PDEATHSIG, q.at+deathSigAt),
		call(unix.SYS_PRCTL, unix.PR_GET_CHILD_SUBREAPER, q.at+subreaperAt),
		call(unix.SYS_PRCTL, unix.PR_GET_SECUREBITS),
		call(unix.SYS_ARCH_PRCTL|proc.MayFail, archGetXCompPerm, q.at+xcompPermAt),
		call(unix.SYS_MEMBARRIER|proc.MayFail, membarrierGetRegistrations, 0, 0),
		call(unix.SYS_PRCTL, unix.PR_GET_DUMPABLE),
		call(unix.SYS_BRK, 0))
	results, err := q.in.Run(q.f.pid, calls, nil)
	if err != nil {
		return err
	}
	for sig := range numSignals {
		at := sig * actionSize
		st.Actions = append(st.Actions, Action{q.word(at), q.word(at + 8), q.word(at + 16), q.word(at + 24)})
	}
	for which := range st.Timers {
		at := timersAt + which*timerSize
		st.Timers[which] = Interval{q.word(at), q.word(at + 8), q.word(at + 16), q.word(at + 24)}
	}
	st.PDeathSig = q.word(deathSigAt) & 0xffffffff
	st.Subreaper = q.word(subreaperAt)&0xffffffff != 0
	n := len(results)
	st.Creds.SecureBits = uint64(results[n-5])
	st.Dumpable, st.MM.Brk = uint64(results[n-2]), uint64(results[n-1])
	if registered := results[n-3]; registered > 0 {
		st.Membarrier = uint64(registered)
	}
	if results[n-4] == 0 && q.word(xcompPermAt)&onRequest != 0 {
		q.f.c.refused.add("AMX", "the process has permission to use its tiles, which are not preserved", "")
	}
	return nil
}

// thread asks what each thread has of its own.
func (q *questions) thread(th *Thread) error {
	if err := q.begin(); err != nil {
		return err
	}
	_, err := q.in.Run(th.TID, []proc.Call{
		call(unix.SYS_SIGALTSTACK, 0, q.at+altStackAt),
		call(unix.SYS_PRCTL, unix.PR_GET_TID_ADDRESS, q.at+clearTIDAt),
	}, nil)
	th.AltStack = AltStack{SP: q.word(altStackAt), Flags: q.word(altStackAt+8) & 0xffffffff, Size: q.word(altStackAt + 16)}
	th.ClearTID = q.word(clearTIDAt)
	return err
}
