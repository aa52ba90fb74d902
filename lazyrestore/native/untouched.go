package native

import (
	"errors"
	"fmt"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Between the mapping of memory and its registration a page that another process
// reads, through /proc/PID/mem or by process_vm_readv, becomes a page of zeros that is
// there for good: no fault brings what belongs there. Nothing keeps off whoever may
// trace the process, so the process looks which pages it has, once all is registered
// and before anybody can have brought one. It does so itself: what is asked of its page
// tables from another processor takes several times as long.

// ErrTouched says that another process has read, or written to, memory of a process
// that was being built. It can be tried again.
var ErrTouched = errors.New("another process touched it while it was being built")

// A look is at the pages that are there, or were and are swapped out, in one part of the address space.
type look struct {
	page.Range
	step    int    // of the first thread's table
	regions []byte // struct page_region, as many as fit
}

// apart is from how many mappings on that have nothing lazy it takes longer to look at
// them too than to look twice: files that are mapped, most of all, of which each has its
// eager pages.
const apart = 4

// lookRanges are parts of the address space with all that is to come lazily in them, and
// little else.
func (st *State) lookRanges() (rs []page.Range) {
	between := apart
	for i := range st.VMAs {
		lazy := st.VMAs[i].Lazy
		if len(lazy) == 0 {
			between++
			continue
		}
		r := page.Range{Start: lazy[0].Start, End: lazy[len(lazy)-1].End}
		if between < apart {
			rs[len(rs)-1].End = r.End
		} else {
			rs = append(rs, r)
		}
		between = 0
	}
	return rs
}

// foreign is for how many runs of pages that are not to be there a look has room.
const foreign = 64

// lookRoom is how many bytes the looks take, with what they find: all that is eager, which
// they may part.
func (st *State) lookRoom() int {
	looks := len(st.lookRanges()) + 1 // the program may part one
	return proc.PageRegionSize*(len(st.Eager)+len(st.Guards)+(foreign+2)*looks) + 256*looks
}

// lookAround plans looks at all memory that is to come lazily. They fail where the kernel
// has no PAGEMAP_SCAN (before Linux 6.7), or where there is no /proc; then nobody
// knows.
func (b *builder) lookAround(t *table) {
	const fd = userfaultfdFD + 1
	t.call("open the page map", unix.SYS_OPENAT, atFDCWD, b.prog.cstring("/proc/self/pagemap"), unix.O_RDONLY|unix.O_CLOEXEC).mayFail()
	program := b.prog.mapped()
	b.found = b.eager
	if len(b.st.Guards) > 0 { // the kernel calls them swapped out
		b.found = b.found.Clone()
		for _, g := range b.st.Guards {
			b.found.Add(g)
		}
	}
	for _, whole := range b.st.lookRanges() {
		for _, r := range [...]page.Range{{Start: whole.Start, End: min(whole.End, program.Start)}, {Start: max(whole.Start, program.End), End: whole.End}} {
			if r.Start >= r.End {
				continue
			}
			room := foreign
			for range b.found.Within(r) {
				room++
			}
			l := look{Range: r, step: len(t.steps)}
			var vec uint64
			vec, l.regions = b.prog.alloc(proc.PageRegionSize * room)
			arg := b.prog.words(proc.PageScan(r, proc.PagePresent|proc.PageSwapped, vec, room)...)
			t.call("look for pages that are there", unix.SYS_IOCTL, fd, proc.PageScanRequest, arg).mayFail()
			b.looks = append(b.looks, l)
			b.enough(t)
		}
	}
	t.call("close the page map", unix.SYS_CLOSE, fd).mayFail()
}

// untouched says whether the process has found pages that a pager is to bring.
func (b *builder) untouched() error {
	if len(b.looks) == 0 {
		return nil
	}
	for i := range b.looks {
		l := &b.looks[i]
		found, done := b.prog.result(b.main, l.step)
		if _, failed := proc.Errno(found); failed || !done {
			continue
		}
		for j := range int(found) {
			if err := b.untouchedIn(proc.PageRegion(l.regions[j*proc.PageRegionSize:])); err != nil {
				return err
			}
		}
		if int(found)*proc.PageRegionSize == len(l.regions) { // there may be more
			return fmt.Errorf("more than is to be there of %v: %w", l.Range, ErrTouched)
		}
	}
	return nil
}

// untouchedIn looks at pages that are there. Its own are there by the program.
func (b *builder) untouchedIn(run page.Range) error {
	vmas := b.st.VMAs
	first := sort.Search(len(vmas), func(i int) bool { return vmas[i].End > run.Start })
	for i := first; i < len(vmas) && vmas[i].Start < run.End; i++ {
		for _, lazy := range vmas[i].Lazy {
			if r := lazy.Intersect(run); !r.Empty() && !b.found.Covers(r) {
				return fmt.Errorf("memory in %v, which is to come lazily: %w; who reads /proc/%d/mem?", r, ErrTouched, b.pid)
			}
		}
	}
	return nil
}
