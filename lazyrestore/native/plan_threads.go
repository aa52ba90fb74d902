package native

import (
	"encoding/binary"
	"strconv"

	"golang.org/x/sys/unix"
)

// threadFlags are the clone(2) flags that make a thread as pthread_create(3)
// does, but for what its table sets itself.
const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM

// To make a thread takes the kernel ten to twenty microseconds, most of them on
// behalf of the one who makes it. So where there are many, the second makes half of
// them, at the same time, on another processor: what a thread has from its maker is
// the same for all, as long as neither has become what it was.

// manyThreads is from how many threads on two of them make the others.
const manyThreads = 16

// threads plans the other threads: each is made with its old id and runs a
// table of its own, at whose end it sleeps until it is seized.
func (b *builder) threads(t *table) {
	all := b.st.Threads
	if len(all) == 1 {
		return
	}
	// A thread begins with the name of the one that made it.
	t.call("name the thread", unix.SYS_PRCTL, unix.PR_SET_NAME, b.prog.cstring(all[0].Comm)).on(all[0].Comm)
	b.threadTables = make([]*table, len(all)-1)
	second, half := &table{}, len(all)
	if len(all) >= manyThreads {
		half = len(all)/2 + 1
		for i := half; i < len(all); i++ {
			b.create(second, i, b.threadTable())
		}
		b.tell(second, "tell that the threads are made", othersOffset)
	}
	b.create(t, 1, second)
	for i := 2; i < half; i++ {
		b.create(t, i, b.threadTable())
		b.enough(t)
	}
	if half < len(all) {
		t.call("wait for the other threads", unix.SYS_FUTEX, b.prog.base+othersOffset, futexWait, 0).mayFail() // EAGAIN: they are there
	}
}

// threadTable is a table with room for as many steps as the last thread had. It is
// cut out of memory for many.
func (b *builder) threadTable() *table {
	const atOnce = 1024
	n := min(b.usual, atOnce)
	if len(b.room) < n {
		b.room = make([]step, atOnce)
	}
	t := &table{steps: b.room[:0:n]}
	b.room = b.room[n:]
	return t
}

// create plans the making of thread i, with what it does itself behind what its
// table has already.
func (b *builder) create(t *table, i int, own *table) {
	th, before := &b.st.Threads[i], len(own.steps)
	b.thread(own, th)
	b.credentials(own)
	if b.st.NoNewPrivs {
		own.call("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1) // each thread has its own
	}
	if sig := th.Switches.DeathSig; sig != 0 { // which a change of credentials clears
		own.call("set the parent-death signal", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, sig)
	}
	b.sleepStep(own, th)
	own.call("sleep until the restore is done", unix.SYS_PAUSE)
	b.threadTables[i-1], b.usual = own, len(own.steps)-before

	tidAt, tidBytes := b.prog.alloc(8)
	binary.NativeEndian.PutUint32(tidBytes, uint32(th.TID))
	flags := uint64(threadFlags)
	if th.ClearTID != 0 {
		flags |= unix.CLONE_CHILD_CLEARTID
	}
	args := b.prog.words(flags, 0, th.ClearTID, 0, 0, 0, 0, 0, tidAt, 1, 0) // struct clone_args
	t.call("create thread", unix.SYS_CLONE3, args, 11*8, 0, 0, 0, b.prog.place(own)).
		on(strconv.Itoa(th.TID)).returns(uint64(th.TID))
}

// thread plans what a thread sets for itself.
func (b *builder) thread(t *table, th *Thread) {
	leader := &b.st.Threads[0]
	if th == leader {
		t.call("set the tid address", unix.SYS_SET_TID_ADDRESS, th.ClearTID)
	}
	if th.RobustList != 0 {
		t.call("set the robust list", unix.SYS_SET_ROBUST_LIST, th.RobustList, th.RobustLen)
	}
	if len(b.st.Threads) == 1 || th.Comm != leader.Comm {
		t.call("name the thread", unix.SYS_PRCTL, unix.PR_SET_NAME, b.prog.cstring(th.Comm)).on(th.Comm)
	}
	if th.AltStack.Flags&ssDisable == 0 {
		t.call("set the signal stack", unix.SYS_SIGALTSTACK, b.prog.words(th.AltStack.SP, th.AltStack.Flags&^ssOnStack, th.AltStack.Size), 0)
	}
	if th.RSeq.Addr != 0 {
		t.call("register restartable sequences", unix.SYS_RSEQ, th.RSeq.Addr, uint64(th.RSeq.Len), 0, uint64(th.RSeq.Sig))
	}
	b.schedulingSteps(t, th)
	b.switchSteps(t, th)
	b.queue(t, th, th.Pending, unix.SYS_RT_TGSIGQUEUEINFO, uint64(b.st.PID), uint64(th.TID))
}
