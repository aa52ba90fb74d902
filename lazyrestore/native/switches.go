package native

import (
	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Switches are what a thread has set by prctl(2) and arch_prctl(2) about
// itself, each 0 where it has not.
type Switches struct {
	NoTSC     uint64 // 1: reading the time stamp counter raises SIGSEGV
	NoCPUID   uint64 // 1: CPUID raises SIGSEGV
	MCEKill   uint64 // 1 + PR_MCE_KILL_LATE or _EARLY
	IOFlusher uint64 // 1: PR_SET_IO_FLUSHER
	DeathSig  uint64 // parent-death signal, but for the first thread, whose State has it
}

// switches codes section 66.
func (c *coder) switches(st *State) {
	for i := range st.Threads {
		s := &st.Threads[i].Switches
		for _, v := range []*uint64{&s.NoTSC, &s.NoCPUID, &s.MCEKill, &s.IOFlusher, &s.DeathSig} {
			c.u64(v)
		}
	}
}

// process codes section 69.
func (c *coder) process(st *State) {
	c.u64(&st.MemoryMerge)
	c.u64(&st.THPFlags)
	c.u64(&st.CoreFilter)
}

// See <asm/prctl.h> and <linux/prctl.h>.
const (
	archGetCPUID = 0x1011
	archSetCPUID = 0x1012

	prThreadTSCSigsegv = 2
	prMCEKillDefault   = 2
)

// askSwitches are the questions about them.
func (q *questions) askSwitches(th *Thread) []asked {
	tsc, cookie, deathSig := q.room(8), q.room(8), q.room(8)
	s := &th.Switches
	return []asked{
		{call(unix.SYS_PRCTL|proc.MayFail, unix.PR_GET_TSC, q.at+tsc), func(ret int64) {
			if ret == 0 && q.word(tsc)&0xffffffff == prThreadTSCSigsegv {
				s.NoTSC = 1
			}
		}},
		{call(unix.SYS_ARCH_PRCTL|proc.MayFail, archGetCPUID), func(ret int64) {
			if ret == 0 {
				s.NoCPUID = 1
			}
		}},
		{call(unix.SYS_PRCTL|proc.MayFail, unix.PR_MCE_KILL_GET), func(ret int64) {
			if ret >= 0 && ret != prMCEKillDefault {
				s.MCEKill = uint64(ret) + 1
			}
		}},
		{call(unix.SYS_PERSONALITY, 0xffffffff), func(ret int64) {
			if uint64(ret) != q.f.c.st.Persona {
				q.f.c.refused.add(threadName(th.TID), "it has another personality than the first thread", "")
			}
		}},
		{call(unix.SYS_PRCTL|proc.MayFail, unix.PR_GET_IO_FLUSHER), func(ret int64) {
			if ret > 0 {
				s.IOFlusher = 1
			}
		}},
		{call(unix.SYS_PRCTL, unix.PR_GET_PDEATHSIG, q.at+deathSig), func(int64) {
			if th.TID != q.f.pid {
				s.DeathSig = q.word(deathSig) & 0xffffffff
			}
		}},
		{call(unix.SYS_PRCTL|proc.MayFail, unix.PR_SCHED_CORE, unix.PR_SCHED_CORE_GET, 0, 0, q.at+cookie), func(ret int64) {
			if ret == 0 && q.word(cookie) != 0 {
				q.f.c.refused.add(threadName(th.TID), "core scheduling has put it apart from others (PR_SCHED_CORE)", "")
			}
		}},
	}
}

// switchSteps plans what a thread sets about itself.
func (b *builder) switchSteps(t *table, th *Thread) {
	s := &th.Switches
	if s.NoTSC != 0 {
		t.call("forbid the time stamp counter", unix.SYS_PRCTL, unix.PR_SET_TSC, prThreadTSCSigsegv)
	}
	if s.NoCPUID != 0 {
		t.call("forbid CPUID", unix.SYS_ARCH_PRCTL, archSetCPUID, 0)
	}
	if s.MCEKill != 0 {
		t.call("set what memory errors do", unix.SYS_PRCTL, unix.PR_MCE_KILL, unix.PR_MCE_KILL_SET, s.MCEKill-1)
	}
	if s.IOFlusher != 0 {
		t.call("become an I/O flusher", unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1)
	}
}

// askProcessSwitches are the questions about what the whole process has set.
func (q *questions) askProcessSwitches() []asked {
	st, ldt := q.f.c.st, q.room(16)
	return []asked{
		{call(unix.SYS_PRCTL|proc.MayFail, unix.PR_GET_MEMORY_MERGE), func(ret int64) {
			if ret > 0 {
				st.MemoryMerge = uint64(ret)
			}
		}},
		{call(unix.SYS_PRCTL|proc.MayFail, unix.PR_GET_THP_DISABLE), func(ret int64) {
			if ret > 0 {
				st.THPFlags = uint64(ret) &^ 1
			}
		}},
		{call(unix.SYS_PRCTL|proc.MayFail, unix.PR_GET_MDWE), func(ret int64) {
			if ret > 0 {
				q.f.c.refused.add("memory-deny-write-execute", "the process has given up memory that it can write and execute (PR_SET_MDWE)", "")
			}
		}},
		{call(unix.SYS_MODIFY_LDT|proc.MayFail, 0, q.at+ldt, 16), func(ret int64) {
			if ret > 0 {
				q.f.c.refused.add("local descriptor table", "the process has segments of its own (modify_ldt)", helpCRIU)
			}
		}},
	}
}
