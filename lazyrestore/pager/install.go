package pager

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// An installer puts decoded frames into spaces. It belongs to one goroutine.
type installer struct {
	*table
	tally *counters
	// readerWaits reports whether the reader waits at the gate: then it is let in. The reader itself never does.
	readerWaits func() bool
	// forming says that mappings are still being made: a page that has no
	// place may have one later.
	forming *atomic.Bool
	// mayCome is whether they were before the latest call into a space: afterwards is too late,
	// for what that did not find may be made by then, and have been the last.
	mayCome bool
	runs    []image.Run
	parts   []part
	gaps    []page.Range // of the latest plan: pages of zeros behind its parts
	huge    []page.Addr  // of the latest install: huge pages that it left out

	buf     *proc.GuardBuffer // nil before the first look
	guarded []page.Range      // of the latest look
	onGuard func(shared bool) // called with what is left out
}

// A part is adjacent pages of a span of frames that go to one place.
type part struct {
	dst      page.Addr
	n        int // bytes
	pageSize int
	off      int // in the span's plain data
	shared   bool
}

// plan lists what of the span, whose plain data begins with page number first
// of the table, s still wants among the pages numbered from i up to j. It
// settles pages that have no place. Parts that lie side by side are one.
func (in *installer) plan(s *space, first, i, j int) {
	in.parts, in.gaps = in.parts[:0], in.gaps[:0]
	for i = s.done.nextClear(i, j); i < j; {
		end := s.done.nextSet(i, j)
		in.addresses(&in.runs, i, end, func(r page.Range, number int) {
			placed := uint64(0)
			s.places(r, func(m page.Mapping) {
				if !m.Shared { // shared memory may have a place twice
					placed += m.Len()
				}
				in.add(part{m.Start, int(m.Len()), int(m.PageSize), int(m.Image-r.Start) + (number-first)<<page.Shift, m.Shared})
			})
			if placed < r.Len() {
				in.settleHoles(s, r, number)
			}
			in.addGap(s, r.End)
		})
		i = s.done.nextClear(end, j)
	}
}

// settleHoles settles the pages of r that have no place.
func (in *installer) settleHoles(s *space, r page.Range, number int) {
	rest := page.SetOf(r)
	s.places(r, func(m page.Mapping) { rest.Remove(m.ImageRange()) })
	for hole := range rest.All() {
		at := number + int((hole.Start-r.Start)>>page.Shift)
		s.settle(at, at+int(hole.Pages()))
	}
}

func (in *installer) add(p part) {
	if k := len(in.parts); k > 0 {
		last := &in.parts[k-1]
		if last.dst+page.Addr(last.n) == p.dst && last.off+last.n == p.off && last.pageSize == p.pageSize && last.shared == p.shared {
			last.n += p.n
			return
		}
	}
	in.parts = append(in.parts, p)
}

// addGap lists the pages of zeros from a on, which follow a page that is
// stored, as far as they are few and the next one is too. A program that runs
// through memory would raise a fault for each such gap. Zeros in shared memory
// cost a page each.
func (in *installer) addGap(s *space, a page.Addr) {
	within := in.SegmentRange(in.SegmentAt(a - page.Size))
	if a == within.End {
		return
	}
	gap := page.Range{Start: a, End: in.table.stored(a, min(a+maxZero+page.Size, within.End))}
	if gap.Empty() || gap.Len() > maxZero {
		return
	}
	s.places(gap, func(m page.Mapping) {
		if !m.Shared && m.PageSize == page.Size {
			in.gaps = append(in.gaps, m.Range)
		}
	})
}

// install puts the pages numbered from i up to j into s, out of plain, the
// data of a span of frames whose first page has the number first, and zeros into
// small gaps between them. Huge pages are left out, and listed in in.huge. The caller is inside the gate, or is the reader. The outcome is
// there, or what stood in the way (see apply); what was done by then is
// settled, so that the same call again does the rest.
func (in *installer) install(s *space, plain []byte, first, i, j int) (outcome, error) {
	in.plan(s, first, i, j)
	if out, err := in.spareGuards(s, plain, first); out != there {
		return out, err
	}
	return in.putAll(s, plain, first)
}

// installTouched is install for page number n, which a thread waits for: no guard is there.
func (in *installer) installTouched(s *space, plain []byte, first, n int) (outcome, error) {
	if s.sharesAny() { // it may have another place
		return in.install(s, plain, first, n, n+1)
	}
	in.plan(s, first, n, n+1)
	return in.putAll(s, plain, first)
}

// putAll does what is planned.
func (in *installer) putAll(s *space, plain []byte, first int) (outcome, error) {
	in.huge = in.huge[:0]
	for _, p := range in.parts {
		if p.pageSize != page.Size {
			in.huge = append(in.huge, hugePages(p)...)
			continue
		}
		out, err := in.putPart(s, p, plain, func(off, n int, how outcome) { in.settled(s, first, p.off+off, n, how) })
		if out != there {
			return out, err
		}
	}
	return in.fillGaps(s)
}

// putPart copies p out of plain, some of it at a time: the outcome is again where the reader wants to read in between.
// settled is that of apply.
func (in *installer) putPart(s *space, p part, plain []byte, settled func(off, n int, how outcome)) (outcome, error) {
	return apply(s.mem, p.dst, p.n, p.pageSize,
		func(dst page.Addr, off, n int) (int64, error) {
			if in.readerWaits() {
				return 0, unix.EAGAIN
			}
			in.look()
			return s.mem.CopyNow(uint64(dst), plain[p.off+off:p.off+off+min(n, oneCopy)], 0)
		}, settled)
}

// fillGaps fills what the plan has found of zeros. Nobody waits for them: what
// something stands in the way of is left to a fault.
func (in *installer) fillGaps(s *space) (outcome, error) {
	for _, g := range in.gaps {
		out, err := apply(s.mem, g.Start, int(g.Len()), page.Size,
			func(dst page.Addr, _, n int) (int64, error) { return s.mem.ZeroNow(uint64(dst), uint64(n), 0) },
			func(_, n int, how outcome) {
				if how == there {
					in.tally.zero.Add(uint64(n))
				}
			})
		if out == broken {
			return out, err
		}
	}
	return there, nil
}

// look is what comes right before each call of which settled, or poison, hears.
func (in *installer) look() { in.mayCome = in.forming != nil && in.forming.Load() }

// settled books n bytes at off of a span that were dealt with.
func (in *installer) settled(s *space, first, off, n int, how outcome) {
	if how == gone && in.mayCome {
		return
	}
	at := first + off>>page.Shift
	s.settle(at, at+n>>page.Shift)
	if how == there { // which happens to a page once, whoever settles it first
		in.tally.installed.Add(uint64(n))
	}
}

// poison makes the pages numbered from i up to j of s lost: touching one
// raises SIGBUS. They are never left to read as zeros. Huge pages are left out,
// and listed in in.huge.
func (in *installer) poison(s *space, i, j int) (outcome, error) {
	in.plan(s, i, i, j)
	in.huge = in.huge[:0]
	for _, p := range in.parts {
		if p.pageSize != page.Size {
			in.huge = append(in.huge, hugePages(p)...)
			continue
		}
		out, err := apply(s.mem, p.dst, p.n, p.pageSize,
			func(dst page.Addr, _, n int) (int64, error) {
				in.look()
				return s.mem.Poison(uint64(dst), uint64(n), 0)
			},
			func(off, n int, how outcome) {
				if how == gone && in.mayCome {
					return
				}
				at := i + (p.off+off)>>page.Shift
				if p.shared && how != gone {
					s.lose(at, at+n>>page.Shift)
				} else {
					s.settle(at, at+n>>page.Shift)
				}
				if how == there {
					in.tally.poisoned.Add(uint64(n))
				}
			})
		if out != there {
			return out, err
		}
	}
	return there, nil
}
