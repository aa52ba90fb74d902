package native

import (
	"encoding/binary"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	sigSetSize = 8
	numSignals = 64
	allSignals = ^uint64(0)
)

// process plans what belongs to the process as a whole.
func (b *builder) process(t *table) {
	st := b.st
	b.arguments(t)
	t.call("change to the working directory", unix.SYS_CHDIR, b.prog.cstring(st.Cwd)).on(st.Cwd)
	t.call("set the umask", unix.SYS_UMASK, uint64(st.Umask))
	t.call("set the personality", unix.SYS_PERSONALITY, st.Persona)
	for i, a := range st.Actions {
		sig := i + 1
		if unix.Signal(sig) == unix.SIGKILL || unix.Signal(sig) == unix.SIGSTOP {
			continue
		}
		act := b.prog.words(a.Handler, a.Flags, a.Restorer, a.Mask)
		t.call("set the action of signal", unix.SYS_RT_SIGACTION, uint64(sig), act, 0, sigSetSize).on(strconv.Itoa(sig))
	}
	b.queue(t, &st.Threads[0], st.Pending, unix.SYS_RT_SIGQUEUEINFO, uint64(st.PID))
	for bit := range uint(63) {
		if st.Membarrier&(1<<bit) != 0 {
			t.call("register for memory barriers", unix.SYS_MEMBARRIER, 1<<bit, 0, 0)
		}
	}
	if st.Subreaper {
		t.call("become a subreaper", unix.SYS_PRCTL, unix.PR_SET_CHILD_SUBREAPER, 1)
	}
}

// last plans what the leader does when all else stands: what earlier steps
// still needed otherwise, the descriptors of the restore itself, and the stop
// at which it is given its registers.
func (b *builder) last(t *table) {
	st := b.st
	b.setLimits(t)
	t.call("set huge pages", unix.SYS_PRCTL, unix.PR_SET_THP_DISABLE, boolWord(st.THPDisable || st.THPFlags != 0), st.THPFlags)
	if st.MemoryMerge != 0 {
		t.call("let equal pages be merged", unix.SYS_PRCTL, unix.PR_SET_MEMORY_MERGE, 1).mayFail().warns("equal pages are not merged (PR_SET_MEMORY_MERGE)")
	}
	b.posixTimerSteps(t)
	for which, iv := range st.Timers {
		if which == unix.ITIMER_REAL && iv.ValueSec|iv.ValueUsec == 0 {
			// It has run out, and its signal, not yet taken, would have set it
			// going again; a new timer knows nothing of that signal.
			iv.ValueSec, iv.ValueUsec = iv.IntervalSec, iv.IntervalUsec
		}
		if iv.ValueSec|iv.ValueUsec != 0 {
			arg := b.prog.words(iv.IntervalSec, iv.IntervalUsec, iv.ValueSec, iv.ValueUsec)
			t.call("set the interval timer", unix.SYS_SETITIMER, uint64(which), arg, 0).on(strconv.Itoa(which))
		}
	}
	b.descriptionLocks(t)
	b.lateSeals(t)
	b.fileWatches(t)
	b.credentials(t)
	if st.NoNewPrivs {
		t.call("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1)
	}
	if st.Dumpable <= 1 && !b.lateDumpable() {
		t.call("set dumpable", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, st.Dumpable)
	}
	b.closeOwn(t)
	b.owners(t)
	b.recordLocks(t)
	b.lockAll(t)
	t.call("set the parent-death signal", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, st.PDeathSig)
	// What a process makes that runs before it has left the program has no use for it.
	left := b.prog.mapped()
	t.call("keep the table from children", unix.SYS_MADVISE, uint64(left.Start), left.Len(), unix.MADV_DONTFORK)
	b.tellBuilt(t)
	t.call("stop", unix.SYS_TGKILL, uint64(st.PID), uint64(st.PID), uint64(unix.SIGSTOP))
}

func boolWord(v bool) uint64 {
	if v {
		return 1
	}
	return 0
}

// signalOf is the number in a siginfo_t.
func signalOf(info []byte) int {
	if len(info) < 4 {
		return 0
	}
	return int(binary.NativeEndian.Uint32(info))
}
