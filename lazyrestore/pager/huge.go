package pager

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// Memory of huge pages (hugetlb) can be filled in whole huge pages only, each
// from many chunks, and has no page of zeros.

// wholePages is the part of r that is whole pages, and the pages of which r has a part. Only of
// shared huge pages the kernel takes away parts, and leaves the rest as it was.
func (l *layout) wholePages(r page.Range) (whole page.Range, parts []page.Range) {
	m := page.Mapping{}
	if i := l.search(r.Start); i < len(l.byProc) && l.byProc[i].Start < r.End {
		m = l.byProc[i] // the range of one event lies in one mapping
	}
	if !m.Shared || m.PageSize == page.Size {
		return r, nil
	}
	size := page.Addr(m.PageSize)
	first, last := r.Start&^(size-1), (r.End-1)&^(size-1)
	if first != r.Start {
		parts = append(parts, page.RangeOf(first, m.PageSize))
	}
	if last+size != r.End && (first == r.Start || last != first) {
		parts = append(parts, page.RangeOf(last, m.PageSize))
	}
	return page.Range{Start: (r.Start + size - 1) &^ (size - 1), End: r.End &^ (size - 1)}, parts
}

// hugePages is the first address of each huge page that p touches.
func hugePages(p part) []page.Addr {
	var list []page.Addr
	size := page.Addr(p.pageSize)
	for a := p.dst &^ (size - 1); a < p.dst+page.Addr(p.n); a += size {
		list = append(list, a)
	}
	return list
}

// installHuge fetches all of the huge page of s that holds the address at,
// and installs it. An address whose mapping has gone meanwhile is left alone.
func (w *worker) installHuge(ctx context.Context, s *space, at page.Addr, lane image.Lane) error {
	w.gate.enter()
	m, ok := s.find(at)
	w.gate.leave()
	if !ok || m.PageSize == page.Size {
		return nil
	}
	size := page.Addr(m.PageSize)
	from := m.ImageAddr(at &^ (size - 1))
	whole := page.Range{Start: from, End: from + size}
	fetchErr := w.openRange(ctx, whole, lane)
	if fetchErr == nil {
		if stored, missing := s.count(w.table, whole); stored > 0 && missing == 0 {
			if !s.lostIn(w.table, whole) {
				return nil
			}
			fetchErr = errIndex // or whatever it was: that has been told
		} else {
			fetchErr = w.assemble(ctx, whole, lane)
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(fetchErr, errKilled):
		return fetchErr
	case s.crowded.Load():
		return errCrowded
	case fetchErr != nil && !errors.Is(fetchErr, errIndex): // that has been told
		if killed, err := w.killFor(s, fetchErr); killed {
			return err
		}
		w.log.Error("a huge page is lost and poisoned: touching it raises SIGBUS", "address", at.String(), "error", fetchErr)
		w.lost.add(fetchErr)
	}
	// put wants pages to count: one huge page is one piece.
	return w.put(ctx, s, 0, 1, unlessCrowded(s, func(int, int) (outcome, error) { return w.placeHuge(s, whole, fetchErr != nil) }))
}

// assemble fetches all that is stored in the image range r into w.big.
func (w *worker) assemble(ctx context.Context, r page.Range, lane image.Lane) error {
	if uint64(len(w.big)) != r.Len() {
		if w.big != nil {
			_ = unix.Munmap(w.big)
		}
		var err error
		w.big, err = unix.Mmap(-1, 0, int(r.Len()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			w.big = nil
			return fmt.Errorf("memory for a huge page: %w", os.NewSyscallError("mmap", err))
		}
	}
	if w.bigFrames == nil {
		w.bigFrames = w.newFrames()
	}
	clear(w.big)
	var plain []byte
	frame := uint32(0)
	for run := range w.RunsIn(r) {
		if run.Kind != image.Stored {
			continue
		}
		if plain == nil || run.Frame != frame {
			var err error
			if plain, err = w.fetchBy(ctx, w.bigFrames, int(run.Frame), lane); err != nil {
				return err
			}
			frame = run.Frame
		}
		part := run.Range().Intersect(r)
		off := uint64(run.Offset)<<page.Shift + uint64(part.Start-run.Page)
		copy(w.big[part.Start-r.Start:], plain[off:off+part.Len()])
	}
	return nil
}

// placeHuge installs w.big, or poisons, wherever the huge page of the image
// range r is in s by now. The caller is inside the gate.
func (w *worker) placeHuge(s *space, r page.Range, lose bool) (outcome, error) {
	var places []page.Mapping
	s.places(r, func(m page.Mapping) { places = append(places, m) })
	dealt, mayCome := false, false // with one place of it; another may be made yet
	for _, m := range places {
		if m.Len() != r.Len() {
			continue // part of it is gone: the kernel does not split huge pages
		}
		op := func(dst page.Addr, off, n int) (int64, error) {
			w.look()
			if lose {
				return s.mem.Poison(uint64(dst), uint64(n), 0)
			}
			return s.mem.Copy(uint64(dst), w.big[off:off+n], 0)
		}
		out, err := apply(s.mem, m.Start, int(m.Len()), int(m.PageSize), op, func(_, n int, how outcome) {
			dealt, mayCome = dealt || how != gone, mayCome || how == gone && w.mayCome
			switch {
			case how != there:
			case lose:
				w.stats.poisoned.Add(uint64(n))
			default:
				w.stats.installed.Add(uint64(n))
			}
		})
		if out != there {
			return out, err
		}
	}
	if mayCome && !dealt {
		return there, nil
	}
	shared := len(places) > 0 && places[0].Shared
	w.segments(r, func(_ int, sg *segment) {
		switch {
		case sg == nil || sg.lost():
		case lose && shared:
			s.lose(sg.numbers(r))
		default:
			s.settle(sg.numbers(r))
		}
	})
	return there, nil
}
