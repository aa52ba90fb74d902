package pager

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A ramp decides how much is filled with zeros around a fault that no image
// page is for: one page at a random place, more and more for a row of them.
type ramp struct {
	end page.Addr
	len uint64
}

// maxZero bounds one fill with zeros: as much as a chunk.
const maxZero = 64 << 10

// next is how many bytes to fill from a on.
func (r *ramp) next(a page.Addr, pageSize uint64) uint64 {
	if a == r.end && r.len > 0 {
		r.len = max(min(2*r.len, maxZero), pageSize)
	} else {
		r.len = pageSize
	}
	r.end = a + page.Addr(r.len)
	return r.len
}

// zero fills from the fault on with zeros, no further than limit: an address
// that no image page is for.
func (r *reader) zero(f fault, m page.Mapping, limit page.Addr) verdict {
	s := f.s
	n := min(s.ramp.next(f.addr, page.Size), uint64(limit-f.addr))
	if m.Shared || m.Empty() && s.mayShare(f.addr) {
		n = page.Size // in shared memory zeros too overwrite a guard region
	}
	for {
		var did int64
		var err error
		if f.write {
			// A copy overwrites a guard region, of which nothing is known here: it is of
			// the page alone that was touched, which is none.
			did, err = s.mem.CopyNow(uint64(f.addr), r.zeros[:page.Size], 0)
			if did > 0 && n > page.Size {
				more, _ := s.mem.ZeroNow(uint64(f.addr)+page.Size, n-page.Size, 0)
				did += max(more, 0)
			}
		} else {
			did, err = s.mem.ZeroNow(uint64(f.addr), n, 0)
		}
		r.stats.zero.Add(uint64(max(did, 0)))
		if did > 0 {
			return settled // what is beyond a page that is there can wait
		}
		switch out := outcomeOf(err); out {
		case gone, present:
			if out == gone && n > page.Size {
				n = page.Size
				continue
			}
			_ = s.mem.Wake(uint64(f.addr), page.Size)
			return settled
		case broken:
			if m.Empty() {
				return r.zeroHuge(f, err)
			}
			return r.judge(s, out, err)
		default:
			return r.judge(s, out, err)
		}
	}
}

// zeroHuge fills with zeros where a page of the common size was refused: in
// memory of huge pages that an event took out of the layout.
func (r *reader) zeroHuge(f fault, cause error) verdict {
	for _, size := range [...]uint64{2 << 20, 1 << 30} {
		at := uint64(f.addr) &^ (size - 1)
		zeros, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
		if err != nil {
			return retry
		}
		did, err := f.s.mem.Copy(at, zeros, 0) // which may take half a second
		_ = unix.Munmap(zeros)
		if did > 0 {
			r.stats.zero.Add(uint64(did))
			return settled
		}
		switch out := outcomeOf(err); out {
		case broken, gone:
		case present:
			_ = f.s.mem.Wake(at, size)
			return settled
		default:
			return r.judge(f.s, out, err)
		}
	}
	r.note(fmt.Errorf("fill %v with zeros: %w", f.addr, cause))
	return settled
}
