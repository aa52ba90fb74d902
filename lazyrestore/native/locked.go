package native

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Locked memory. A lock makes all of its range resident, which is what a lazy
// restore does not do: lazy mappings are locked as their pages come
// (MLOCK_ONFAULT); all of their pages do come.

// A LockedRange is a mapping that is locked in memory.
type LockedRange struct {
	page.Range
	OnFault bool // mlock2(MLOCK_ONFAULT)
}

const (
	lockOnFault   = 1 // MLOCK_ONFAULT
	futureLocked  = 1 // of State.LockFuture: MCL_FUTURE
	futureOnFault = 2 // the same with MCL_ONFAULT
)

func (c *capture) locked(v *proc.VMA) {
	if v.Flags&proc.VMLocked != 0 {
		c.st.Locked = append(c.st.Locked, LockedRange{v.Range, v.Flags&proc.VMLockOnFault != 0})
	}
}

// lockFuture learns whether the process has asked for memory to be locked that
// it will map (mlockall): the kernel tells nobody, but it has locked what we
// have mapped in it.
func (q *questions) lockFuture() error {
	c := q.f.c
	if c.status.VmLck == 0 {
		// Whoever asks for it has something locked: what it mapped since, or the
		// region that we hold there.
		s, err := proc.ReadStatus(c.pid)
		if err != nil || s.VmLck == 0 {
			return err
		}
	}
	smaps, err := proc.ReadSmaps(c.pid)
	if err != nil {
		return err
	}
	for i := range smaps.VMAs {
		v := &smaps.VMAs[i]
		if v.Start != q.in.Region().Start || v.Flags&proc.VMLocked == 0 {
			continue
		}
		c.st.LockFuture = futureLocked
		if v.Flags&proc.VMLockOnFault != 0 {
			c.st.LockFuture = futureOnFault
		}
	}
	return nil
}

// lockMemory plans the locks of mappings, when their lazy ranges are
// registered. What cannot be locked shows in the first call. The second has all of the
// mapping become resident: a guard, or what lies behind the end of a file, cannot, as it
// could not when the process called mlockall, which does not mind; the mapping is
// locked by then.
func (b *builder) lockMemory(t *table) {
	for _, l := range b.st.Locked {
		t.call("lock in memory", unix.SYS_MLOCK2, uint64(l.Start), l.Len(), lockOnFault).by(l.Start)
		if !l.OnFault && !b.st.isLazy(l.Range) {
			t.call("have locked memory resident", unix.SYS_MLOCK2, uint64(l.Start), l.Len(), 0).by(l.Start).mayFail()
		}
	}
}

// lockAll plans that future mappings are locked: after the last of the restore's
// own.
func (b *builder) lockAll(t *table) {
	switch b.st.LockFuture {
	case futureLocked:
		t.call("lock future mappings", unix.SYS_MLOCKALL, unix.MCL_FUTURE)
	case futureOnFault:
		t.call("lock future mappings", unix.SYS_MLOCKALL, unix.MCL_FUTURE|unix.MCL_ONFAULT)
	}
}

func (st *State) isLazy(r page.Range) bool {
	for i := range st.VMAs {
		if v := &st.VMAs[i]; v.Range == r {
			return len(v.Lazy) > 0
		}
	}
	return false
}

func (st *State) validLocked() error {
	for _, l := range st.Locked {
		if !st.isMapping(l.Range) {
			return fmt.Errorf("locked memory %v is no mapping", l.Range)
		}
	}
	if st.LockFuture > futureOnFault {
		return fmt.Errorf("a lock of future mappings of kind %d", st.LockFuture)
	}
	return nil
}
