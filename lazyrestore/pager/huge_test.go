package pager

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A spoiler gives pages once, and other bytes with an error from then on.
type spoiler struct {
	image.Source
	reads atomic.Int32
}

func (s *spoiler) ReadRange(ctx context.Context, object string, p []byte, off int64, lane image.Lane) error {
	if object == "pages.raw" && s.reads.Add(1) > 1 {
		copy(p, bytes.Repeat([]byte{0xee}, len(p)))
		return errLink
	}
	return s.Source.ReadRange(ctx, object, p, off, lane)
}

// A huge page of the frame that is being installed is read for itself, and what
// was read of the frame still has to go to the next space.
func TestHugePageLeavesItsFrameAlone(t *testing.T) {
	const huge = 2 << 20
	const at = testBase &^ (2*huge - 1)
	mem, _ := imagetest.Write(t, image.WriterOptions{ChunkSize: 2 * huge},
		imagetest.Run{At: at, P: bytes.Repeat([]byte{0x11}, 16*page.Size)},
		imagetest.Run{At: at + huge, P: bytes.Repeat([]byte{0x22}, huge)},
	)
	se := fakeSessionOf(t, mem, func(m *imagetest.Mem) image.Source { return &spoiler{Source: m} })
	se.retry = 0
	if n := se.pages.Frames(); n != 1 {
		t.Fatalf("%d frames", n)
	}
	l, err := newLayout([]page.Mapping{
		{Range: page.RangeOf(at, 16*page.Size), Image: at, PageSize: page.Size},
		{Range: page.RangeOf(at+huge, huge), Image: at + huge, PageSize: huge},
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{}
	fl := &flight{key: flightKey{frame: 0}}
	var spaces []*space
	var mems []*fakeMemory
	for range 2 {
		m := &fakeMemory{
			vmas:  []page.Range{page.RangeOf(at, 16*page.Size), page.RangeOf(at+huge, huge)},
			pages: map[page.Addr]byte{}, lost: map[page.Addr]bool{}, refuse: func() error { return nil },
		}
		s := newSpace(se.pages, w.add(-1, 1, l.clone()), nil, m, nil)
		spaces, mems = append(spaces, s), append(mems, m)
		fl.waiting = append(fl.waiting, fault{s: s, addr: at})
	}
	se.spaces.Store(&spaces)
	se.demand = newDemand(se, 1)
	worker := se.newWorker("demand")
	defer worker.close()
	se.demand.fly(t.Context(), worker, fl)
	for i, m := range mems {
		if got, ok := m.pages[at]; !ok || got != 0x11 {
			t.Errorf("space %d: the page begins with %#x, %v", i, got, ok)
		}
		if !m.lost[at+huge] {
			t.Errorf("space %d: the huge page that cannot be had is not poisoned", i)
		}
	}
}

// A huge page that had no place while mappings were made is still wanted when they have all been made by
// the time that this is booked, as TestLastMappingIsMadeMeanwhile has it for others.
func TestLastHugeMappingIsMadeMeanwhile(t *testing.T) {
	const huge = 2 << 20
	const at = testBase &^ (huge - 1)
	whole := page.RangeOf(at, huge)
	mem, _ := imagetest.Write(t, image.WriterOptions{ChunkSize: huge}, imagetest.Run{At: at, P: bytes.Repeat([]byte{0x22}, huge)})
	l, err := newLayout([]page.Mapping{{Range: whole, Image: at, PageSize: huge}})
	if err != nil {
		t.Fatal(err)
	}
	for name, lose := range map[string]bool{"install": false, "poison": true} {
		t.Run(name, func(t *testing.T) {
			se := fakeSessionOf(t, mem, plainSource)
			w := se.newWorker("test")
			defer w.close()
			m := &fakeMemory{pages: map[page.Addr]byte{}, lost: map[page.Addr]bool{}, refuse: func() error { return nil }}
			books := &world{}
			s := newSpace(se.pages, books.add(-1, 1, l.clone()), nil, m, nil)
			s.mem = memoryBeingMade{m, se, whole}
			se.open(0, nil)
			se.spaces.Store(&[]*space{s})
			if err := w.assemble(t.Context(), whole, image.Demand); err != nil {
				t.Fatal(err)
			}
			se.forming.Store(true)
			for range 2 {
				if s.done.nextClear(0, huge>>page.Shift) == huge>>page.Shift {
					t.Fatal("it is booked as one that is not wanted")
				}
				if out, err := w.placeHuge(s, whole, lose); out != there {
					t.Fatal(out, err)
				}
			}
			if n := len(m.pages) + len(m.lost); n != huge>>page.Shift {
				t.Errorf("%d pages of %d are there or lost", n, huge>>page.Shift)
			}
		})
	}
}
