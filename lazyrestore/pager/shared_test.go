package pager

import (
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// As long as shared memory is missing, or it is not known whether, it is looked who raises an event
// before that is read; once all of it is there no longer, whatever else is missing.
func TestLooksEndWithSharedMemory(t *testing.T) {
	const private, shared = 5, 6
	mem, _ := imagetest.Write(t, image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}, ChunkSize: 4 * page.Size},
		imagetest.Run{At: testBase, P: nonzero(private)}, imagetest.Run{At: page.ImageShared, P: nonzero(shared)})
	se := fakeSessionOf(t, mem, plainSource)
	l, err := newLayout([]page.Mapping{
		{Range: page.RangeOf(testBase, private*page.Size), Image: testBase, PageSize: page.Size},
		{Range: page.RangeOf(testBase+1<<30, shared*page.Size), Image: page.ImageShared, PageSize: page.Size, Shared: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{}
	s := newSpace(se.pages, w.add(-1, 1, l), nil, &fakeMemory{}, nil)
	sg := se.pages.opened[0].Swap(nil)
	if !s.missesShared(se.pages) {
		t.Error("nothing is missing before the index is there")
	}
	se.pages.opened[0].Store(sg)
	first, end := sg.numbers(page.RangeOf(page.ImageShared, shared*page.Size))
	if end-first != shared {
		t.Fatalf("shared memory has the numbers from %d up to %d", first, end)
	}
	for n := range shared {
		if !s.missesShared(se.pages) {
			t.Errorf("nothing is missing with %d pages of %d", n, shared)
		}
		s.settle(end-1-n, end-n)
	}
	if s.missesShared(se.pages) {
		t.Error("something is missing with all pages")
	}
	if got := s.left.Load(); got != private {
		t.Errorf("%d pages are missing, want %d", got, private)
	}
	j, err := newJournal(w)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	r := &reader{worker: *se.newWorker("reader"), world: w, journal: j}
	defer r.close()
	slots, seen := r.slots(s) // without a descriptor nothing could be looked at
	if len(slots) < 2 || seen.looked {
		t.Errorf("messages are read %d at a time, after a look: %v", len(slots), seen.looked)
	}
}

// nonzero is pages that are not zero.
func nonzero(pages int) []byte {
	b := make([]byte, pages*page.Size)
	for i := range b {
		b[i] = byte(i%251) + 1
	}
	return b
}
