package pager

import (
	"bytes"
	"testing"
	"testing/synctest"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// Who waits for the reader goes on when it is done with all that it was offered, not before; nor does
// it take what it was told of others before for that.
func TestOffersDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		se := &session{pages: &table{}}
		w := &filler{worker: worker{session: se}, back: make(chan struct{}, 1)}
		se.spaces.Store(new([]*space))
		w.isDone(t, 1) // nobody waits for it
		for i := range w.slots {
			w.offered(i)
		}
		waits := true
		go func() {
			w.reclaim(t.Context(), &w.slots[0])
			waits = false
		}()
		for i := range w.slots {
			if synctest.Wait(); !waits {
				t.Fatalf("it goes on when the reader is done with %d of %d", i, len(w.slots))
			}
			w.slots[i].isDone()
		}
		if synctest.Wait(); waits {
			t.Fatal("it still waits for what the reader is done with")
		}
	})
}

// offered is slot i given to the reader.
func (w *filler) offered(i int) {
	o := &w.slots[i]
	o.by, o.out = w, true
	o.done.Store(false)
	w.owed.Add(1)
}

// isDone is n slots that were given to the reader, which is done with them.
func (w *filler) isDone(t *testing.T, n int) {
	t.Helper()
	for i := range n {
		w.offered(i)
		w.slots[i].isDone()
	}
}

// Of a chunk that has not been read two pages are had by themselves, the third brings all of it.
func TestAnotherPage(t *testing.T) {
	const pages, object = 16, "pages"
	p := bytes.Repeat([]byte{7}, pages*page.Size)
	sizes := make(chan int, pages)
	mem := new(imagetest.Mem)
	mem.Set(object, p)
	img, err := image.NewPlain(sized{mem, sizes}, object, []page.Range{page.RangeOf(testBase, uint64(len(p)))}, len(p))
	if err != nil {
		t.Fatal(err)
	}
	se := fakeSessionIn(t, img)
	s := fakeSpace(t, se, &fakeMemory{})
	r := &reader{worker: *se.newWorker("reader")}
	r.pace.since = r.now()
	r.pace.last = r.now()
	defer r.close()
	r.makeRests()
	defer r.dropRests(nil)
	for i, want := range []int{page.Size, page.Size, len(p)} {
		at := testBase + page.Addr(i*5*page.Size)
		run, ok := r.Lookup(at)
		if !ok {
			t.Fatal("no such page")
		}
		if v := r.stored(fault{s: s, addr: at}, run, r.number(run, at)); v != settled {
			t.Fatalf("fault %d: %v", i, v)
		}
		got := 0
		if len(sizes) > 0 {
			got = <-sizes
		}
		if got != want {
			t.Errorf("fault %d on the chunk reads %d bytes, want %d", i, got, want)
		}
		if n := r.number(run, at); !s.done.get(n) {
			t.Errorf("fault %d: the page is not there", i)
		}
	}
}

// A promptly is a source that gives within moments what is far away.
type promptly struct {
	*imagetest.Mem
	reads map[int64]int // of pages.lz4, by offset
}

func (p promptly) ReadNow(string, []byte, int64) (bool, error) { return false, nil }

func (p promptly) ReadSoon(object string, b []byte, off int64) (bool, error) {
	p.reads[off]++
	return p.Mem.ReadNow(object, b, off)
}

// What has come over a network for one page does not come again for the others of its chunk,
// however soon the reader needs its room: not where it is in memory, which costs less than to
// install pages that nobody may want.
func TestRestsOfANetwork(t *testing.T) {
	const chunks, each = 2*maxRests + 3, 4
	src := promptly{reads: map[int64]int{}}
	se := fakeSession(t, chunks*each, func(m *imagetest.Mem) image.Source { src.Mem = m; return src })
	s := fakeSpace(t, se, &fakeMemory{})
	r := &reader{worker: *se.newWorker("reader")}
	defer r.close()
	r.makeRests()
	defer r.dropRests(nil)
	for i := range chunks * each {
		r.pace.since, r.pace.last = r.now(), r.now()
		at := testBase + page.Addr(i*11%chunks*each+i/chunks)<<page.Shift
		run, ok := r.Lookup(at)
		if !ok {
			t.Fatal("no such page")
		}
		n := r.number(run, at)
		if s.done.get(n) {
			continue
		}
		if v := r.stored(fault{s: s, addr: at}, run, n); v != settled || !s.done.get(n) {
			t.Fatalf("fault %d: %v", i, v)
		}
	}
	for off, n := range src.reads {
		if n != 1 {
			t.Errorf("the chunk at %d has come %d times", off, n)
		}
	}
	if len(src.reads) != chunks {
		t.Errorf("%d chunks have come, want %d", len(src.reads), chunks)
	}
}
