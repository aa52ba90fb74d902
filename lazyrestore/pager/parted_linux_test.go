package pager

import (
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// What private memory has grown by, of which the image knows nothing, is zero also above shared memory, and also for a forked child.
func TestPrivateMemoryGrowsAboveShared(t *testing.T) {
	for _, removed := range []bool{false, true} {
		t.Run(fmt.Sprintf("removed=%v", removed), func(t *testing.T) {
			s, sibling := growable(t)
			defer sibling.Exit(0)
			const n = 4 * page.Size
			from := s.Start + 1<<30
			s.Mmap(from, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_FIXED).Wait(t)
			<-s.pager.Serving()
			if _, err := s.pager.attached.fds[0].Register(from, n, uffd.ModeMissing); err != nil {
				t.Fatal(err)
			}
			s.Mremap(from, n, n, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, s.Addr(40)).Wait(t)
			s.Mremap(s.Addr(40), n, 2*n, 0, 0).Wait(t)
			rest := 0
			if removed {
				rest = 2
				s.Madvise(s.Start, page.Size, unix.MADV_REMOVE).Wait(t)
				sibling.Madvise(s.Addr(1), page.Size, unix.MADV_REMOVE).Wait(t)
			}
			child, pid := s.Fork(t)
			pid.Wait(t)
			for name, th := range map[string]*uffdtest.Thread{"process": s.Thread, "child": child} {
				if got, err := th.Load(s.Addr(46)).Result(); got != 0 || err != nil {
					t.Errorf("%s: it holds %d, %v, want 0", name, got, err)
				}
			}
			for _, c := range []struct {
				th  *uffdtest.Thread
				end int
			}{{s.Thread, 32}, {sibling, 64}} {
				zero(t, c.th, s.Start, rest*page.Size)
				s.checkAt(t, c.th, s.Addr(rest), rest*page.Size, (c.end-rest)*page.Size)
			}
			child.Exit(0)
		})
	}
}

// What ends shared memory is told from what was emptied of it, wherever that has moved, with what it had grown by.
func TestWhatPartsSharedMemory(t *testing.T) {
	at := func(n, pages page.Addr) page.Range {
		return page.RangeOf(testBase+n*page.Size, uint64(pages)*page.Size)
	}
	remove := func(w *world, m *model, r page.Range) { w.remove(m, event{kind: eventRemove, from: r}) }
	for name, c := range map[string]struct {
		do   func(w *world, m *model)
		want bool // whether the page 100 is parted from what is below
	}{
		"nothing there":            {func(*world, *model) {}, false},
		"emptied":                  {func(w *world, m *model) { remove(w, m, at(92, 4)) }, false},
		"by another":               {func(w *world, _ *model) { w.removeShared(page.RangeOf(page.ImageShared+92*page.Size, 4*page.Size)) }, false},
		"private":                  {func(w *world, m *model) { m.remap(at(200, 2), at(98, 2).Start, false) }, true},
		"private right above that": {func(w *world, m *model) { remove(w, m, at(92, 4)); m.remap(at(200, 2), at(96, 2).Start, false) }, true},
		"private and then moved": {func(w *world, m *model) {
			remove(w, m, at(80, 4))
			m.remap(at(200, 2), at(110, 2).Start, false)
			m.remap(at(110, 2), at(98, 2).Start, false)
		}, true},
		"emptied and moved to there": {func(w *world, m *model) {
			remove(w, m, at(90, 6))
			m.remap(at(92, 4), at(96, 4).Start, false)
			m.drop(at(92, 4))
		}, false},
		"its growth alone": {func(w *world, m *model) {
			remove(w, m, at(90, 6))
			m.remap(at(96, 2), at(98, 2).Start, false)
			m.drop(at(96, 2))
		}, false},
		"by way of limbo": {func(w *world, m *model) {
			remove(w, m, at(90, 6))
			m.empty(leave{at(92, 6), true, 7})
			m.claim(0, event{kind: eventRemap, from: at(92, 6), to: at(93, 6).Start})
		}, false},
		"gone": {func(w *world, m *model) {
			remove(w, m, at(90, 6))
			m.drop(at(90, 6))
			m.remap(at(200, 2), at(92, 2).Start, false)
		}, true},
	} {
		object := page.Object{Range: page.RangeOf(page.ImageShared, 256*page.Size)}
		l, err := newLayout([]page.Mapping{
			{Range: at(80, 16), Image: page.ImageShared + 80*page.Size, PageSize: page.Size, Shared: true, Object: object},
			{Range: at(200, 2), Image: at(200, 2).Start, PageSize: page.Size},
		})
		if err != nil {
			t.Fatal(err)
		}
		w := &world{}
		m := w.add(3, 0, l)
		m.forget(at(200, 2)) // it was emptied
		c.do(w, m)
		below, ok := m.sharedBelow(at(100, 1).Start)
		if !ok {
			t.Fatalf("%s: nothing is below", name)
		}
		if got := m.parted(below, at(100, 1).Start); got != c.want {
			t.Errorf("%s: parted is %v", name, got)
		}
	}
}

// What is removed of it is nothing of the shared memory.
func TestPrivateMemoryIsRemovedAboveShared(t *testing.T) {
	shared := page.Mapping{
		Range: page.RangeOf(testBase, 8*page.Size), Image: page.ImageShared, PageSize: page.Size, Shared: true,
		Object: page.Object{Range: page.RangeOf(page.ImageShared, 64*page.Size)},
	}
	for name, gap := range map[string]page.Addr{"further above": page.Size, "right above": 0} {
		private := page.Mapping{Range: page.RangeOf(shared.End+gap, page.Size), Image: shared.End + gap, PageSize: page.Size}
		l, err := newLayout([]page.Mapping{shared, private})
		if err != nil {
			t.Fatal(err)
		}
		w := &world{}
		m := w.add(3, 0, l)
		w.remove(m, event{kind: eventRemove, from: private.Range})
		w.remove(m, event{kind: eventRemove, from: page.RangeOf(private.End, 4*page.Size)})
		if !w.removed.Empty() {
			t.Errorf("%s: %v is taken for removed", name, slices.Collect(w.removed.All()))
		}
	}
}
