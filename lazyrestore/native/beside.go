package native

import (
	"cmp"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A program with many libraries has changed pages in each, relocations for the
// most part, and all of them are eager. To write them takes as long as all else
// that the process does to build itself. So some half of them are written from here,
// on another processor, while the process writes the others: once all mappings
// are made, for whoever makes one keeps off whoever writes.

// besideWorth is from how many bytes on that is worth waiting for each other.
const besideWorth = 512 << 10

// ownShare is how many sixteenths of them the process writes itself. It begins later, and
// has work to do behind that; who waits for it has none.
const ownShare = 7

// An eagerRun is adjacent eager pages of the process, and where eager.raw has
// them.
type eagerRun struct {
	page.Range
	off uint64
}

// partEager parts the eager pages of the process into those that it writes
// itself, and those that are written from here.
func (st *State) partEager() (own, beside []eagerRun) {
	var off, all uint64
	for _, e := range st.Eager {
		if e.Shared == 0 {
			own = append(own, eagerRun{e.Range, off})
			all += e.Len()
		}
		off += e.Len()
	}
	if all < besideWorth {
		return own, nil
	}
	share, i := (page.Addr(all) / 16 * ownShare).Down(), 0
	for share >= page.Addr(own[i].Len()) {
		share -= page.Addr(own[i].Len())
		i++
	}
	beside = append(beside, own[i:]...)
	own = own[:i]
	if share > 0 {
		r := &beside[0]
		own = append(own, eagerRun{page.Range{Start: r.Start, End: r.Start + share}, r.off})
		r.Start, r.off = r.Start+share, r.off+uint64(share)
	}
	return own, beside
}

// tellMapped has the process tell that it has made all mappings.
func (b *builder) tellMapped(t *table) {
	if len(b.beside) > 0 {
		b.tell(t, "tell that all is mapped", mappedOffset)
	}
}

// awaitBeside has the process wait for the pages that are written from here.
func (b *builder) awaitBeside(t *table) {
	if len(b.beside) > 0 {
		t.call("wait for the other eager pages", unix.SYS_FUTEX, b.prog.base+eagerOffset, futexWait, 0).mayFail() // EAGAIN: they are there
	}
}

// writeBeside writes the eager pages that are left to us, and tells the process.
func (b *builder) writeBeside(p *Process) error {
	if len(b.beside) == 0 {
		return nil
	}
	first, last := b.beside[0].off, &b.beside[len(b.beside)-1]
	// Copied by the kernel from where they lie: nobody here reads them, whom a file
	// that has become shorter would end.
	from, err := unix.Mmap(int(b.re.opts.Eager.Fd()), int64(first), int(last.off+last.Len()-first), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("map the eager pages: %w", err)
	}
	defer func() { _ = unix.Munmap(from) }()
	pieces := make([]proc.Transfer, 0, len(b.beside))
	for _, r := range b.beside {
		pieces = append(pieces, proc.Transfer{Addr: uint64(r.Start), Data: from[r.off-first:][:r.Len()]})
	}
	for !b.prog.told(mappedOffset, toldPause) {
		if err := b.fault(p); err != nil {
			return err
		}
	}
	defer b.trace.Begin(0, "copy eager pages")()
	if _, err := proc.WriteMemoryV(b.pid, pieces); err != nil {
		return cmp.Or(b.fault(p), fmt.Errorf("copy the eager pages: %w", err))
	}
	return b.prog.open(eagerOffset)
}

// fault says why the process will not come to its end: it has stopped, ended, or
// a step has given what it must not.
func (b *builder) fault(p *Process) error {
	stop, err := p.tracer.PollStop(b.pid)
	if err == nil && stop != 0 {
		err = stoppedEarly(stop)
	}
	return cmp.Or(b.failed(), err)
}
