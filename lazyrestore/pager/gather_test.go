package pager

import (
	"context"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A family is children whose memory lies side by side in one image, and a
// pager that they are attached to one by one.
type family struct {
	children []*served
	pager    *Pager
	done     chan error
}

// gather starts n children of some pages, and a pager that serves none of them yet.
func gather(t *testing.T, n, pages int) *family {
	t.Helper()
	uffdtest.Need(t, "uffd")
	f := &family{done: make(chan error, 1)}
	var runs []imagetest.Run
	for i := range n {
		s := &served{Child: uffdtest.Start(t, uffdtest.Options{Pages: pages, Features: events})}
		at := page.Addr(i) << 42
		s.maps = []page.Mapping{{Range: page.RangeOf(page.Addr(s.Start), s.Length), Image: at, PageSize: page.Size}}
		for k := range pages {
			s.want = append(s.want, uffdtest.Pattern(uint64(1000*i+k)+1, page.Size)...)
		}
		runs = append(runs, imagetest.Run{At: at, P: s.want})
		f.children = append(f.children, s)
	}
	mem, _ := imagetest.Write(t, image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}}, runs...)
	img, err := image.Open(t.Context(), mem, image.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if f.pager, err = New(img, Options{Gather: true}); err != nil {
		t.Fatal(err)
	}
	go func() { f.done <- f.pager.ServeAttached(context.Background()) }()
	return f
}

// attach gives child i to the pager.
func (f *family) attach(t *testing.T, i int) *served {
	t.Helper()
	s := f.children[i]
	u := s.FD
	s.FD = nil
	if err := f.pager.Attach(u, Target{Pid: s.Pid, PidFD: -1}, s.maps); err != nil {
		t.Fatal(err)
	}
	return s
}

func (f *family) wait(t *testing.T) {
	t.Helper()
	select {
	case err := <-f.done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(uffdtest.Timeout):
		t.Fatal("ServeAttached does not return")
	}
}

func TestProcessesComeOneByOne(t *testing.T) {
	const pages = 300
	f := gather(t, 3, pages)
	for i := range f.children {
		s := f.attach(t, i)
		s.checkAt(t, s.Thread, s.Addr(7), 7*page.Size, page.Size)
	}
	// What nobody has touched, and does not lie beside that, is missing.
	if st := f.pager.Stats(); st.MissingBytes < 3*(pages-32)*page.Size {
		t.Errorf("%d bytes are missing before Gathered, want nearly all", st.MissingBytes)
	}
	f.pager.Gathered()
	f.wait(t)
	if st := f.pager.Stats(); st.MissingBytes != 0 || st.Resident == 0 {
		t.Errorf("Stats = %+v", st)
	}
	select {
	case <-f.pager.Resident():
	default:
		t.Error("Resident is not closed")
	}
	for _, s := range f.children {
		s.check(t, s.Thread)
	}
}

// One that is resident before the last has come does not end the pager.
func TestFirstIsDoneBeforeTheLastComes(t *testing.T) {
	f := gather(t, 2, 40)
	first := f.attach(t, 0)
	first.check(t, first.Thread)
	last := f.attach(t, 1)
	f.pager.Gathered()
	f.wait(t)
	last.check(t, last.Thread)
}

// What is abandoned is served until it ends, and nothing comes unasked.
func TestAbandonedAreServedUntilTheyEnd(t *testing.T) {
	f := gather(t, 2, 300)
	s := f.attach(t, 0)
	f.pager.Abandon()
	s.checkAt(t, s.Thread, s.Addr(100), 100*page.Size, 3*page.Size)
	if st := f.pager.Stats(); st.MissingBytes < 250*page.Size {
		t.Errorf("%d bytes are missing, want nearly all", st.MissingBytes)
	}
	s.Kill()
	f.wait(t)
}

func TestNobodyComes(t *testing.T) {
	f := gather(t, 0, 0)
	f.pager.Gathered()
	f.wait(t)
}
