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
// that the process does to build itself. So half of them are written from here,
// on another processor, while the process writes the others: once all mappings
// are made, for whoever makes one keeps off whoever writes.

const (
	// besideWorth is from how many bytes on that is worth waiting for each other.
	besideWorth = 512 << 10
	// besideBuffer is how much is copied at a time: what the cache holds.
	besideBuffer = 64 << 10
)

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
	half, i := (page.Addr(all) / 2).Down(), 0
	for half >= page.Addr(own[i].Len()) {
		half -= page.Addr(own[i].Len())
		i++
	}
	beside = append(beside, own[i:]...)
	own = own[:i]
	if half > 0 {
		r := &beside[0]
		own = append(own, eagerRun{page.Range{Start: r.Start, End: r.Start + half}, r.off})
		r.Start, r.off = r.Start+half, r.off+uint64(half)
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
	for !b.prog.told(mappedOffset, toldPause) {
		if err := b.fault(p); err != nil {
			return err
		}
	}
	defer b.trace.Begin(0, "copy eager pages")()
	buf := make([]byte, besideBuffer)
	for runs := b.beside; len(runs) > 0; {
		var pieces []proc.Transfer
		off, size := runs[0].off, 0
		for len(runs) > 0 && runs[0].off == off+uint64(size) && size < len(buf) {
			r := &runs[0]
			n := int(min(r.Len(), uint64(len(buf)-size)))
			pieces = append(pieces, proc.Transfer{Addr: uint64(r.Start), Data: buf[size : size+n]})
			size += n
			r.Start, r.off = r.Start+page.Addr(n), r.off+uint64(n)
			if r.Empty() {
				runs = runs[1:]
			}
		}
		if _, err := b.re.opts.Eager.ReadAt(buf[:size], int64(off)); err != nil {
			return fmt.Errorf("read the eager pages: %w", err)
		}
		if _, err := proc.WriteMemoryV(b.pid, pieces); err != nil {
			return cmp.Or(b.fault(p), fmt.Errorf("copy the eager pages: %w", err))
		}
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
