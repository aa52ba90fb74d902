package pager

import (
	"context"
	"os"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

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
	f := newFamily(t, n, pages)
	f.serve()
	return f
}

func (f *family) serve() { go func() { f.done <- f.pager.ServeAttached(context.Background()) }() }

// newFamily is gather without the serving.
func newFamily(t *testing.T, n, pages int) *family {
	t.Helper()
	return familyOf(t, n, pages, image.WriterOptions{}, func(*imagetest.Mem) {})
}

// familyOf is newFamily with an image that is written so, and damaged.
func familyOf(t *testing.T, n, pages int, writer image.WriterOptions, damage func(*imagetest.Mem)) *family {
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
	writer.Spec = chunk.Spec{Codec: chunk.LZ4}
	mem, _ := imagetest.Write(t, writer, runs...)
	damage(mem)
	img, err := image.Open(t.Context(), mem, image.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if f.pager, err = New(img, Options{Gather: true}); err != nil {
		t.Fatal(err)
	}
	return f
}

// Who calls a pager that has ended does not write to what has the number of its
// descriptor by then.
func TestKickAfterTheEnd(t *testing.T) {
	s := serveChild(t, setting{child: uffdtest.Options{Pages: 16}, pager: Options{Background: None}})
	<-s.pager.Serving()
	s.pager.mu.Lock()
	se := s.pager.session
	s.pager.mu.Unlock()
	se.kicking.Lock()
	was := se.kickFD
	se.kicking.Unlock()
	s.Kill()
	if err := s.wait(t); err != nil {
		t.Fatal(err)
	}
	other, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other)
	if other != was {
		if _, err := unix.FcntlInt(uintptr(was), unix.F_GETFD, 0); err == nil {
			t.Fatalf("descriptor %d is open", was)
		}
		if err := unix.Dup3(other, was, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(was)
	}
	s.pager.Abandon()
	s.pager.Gathered()
	se.kick()
	if n, err := unix.Read(other, make([]byte, 8)); n > 0 || err != unix.EAGAIN {
		t.Errorf("%d bytes were written to another's descriptor, %v", n, err)
	}
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

// Those that are expected are served from what was made ready for them, in
// whatever order they come, beside others that nobody expected. One that never
// comes is no reason to stay.
func TestExpectedProcesses(t *testing.T) {
	f := newFamily(t, 4, 300)
	for _, s := range f.children[:3] {
		if err := f.pager.Expect(s.Pid, s.maps); err != nil {
			t.Fatal(err)
		}
	}
	never := f.children[1]
	for _, i := range []int{0, 2} {
		f.children[i].maps = nil // what was said before counts
	}
	f.serve()
	<-f.pager.Serving()
	if err := f.pager.Expect(1, nil); err == nil {
		t.Error("Expect while it serves: no error")
	}
	for _, i := range []int{2, 3, 0} {
		s := f.attach(t, i)
		s.checkAt(t, s.Thread, s.Addr(7), 7*page.Size, page.Size)
	}
	f.pager.Gathered()
	f.wait(t)
	for _, i := range []int{0, 2, 3} {
		f.children[i].check(t, f.children[i].Thread)
	}
	if never.FD == nil {
		t.Error("the one that never came has lost its userfaultfd")
	}
}

// While a tree is being built only the page is brought that is waited for:
// nothing is done ahead, which would take a processor from who builds it.
func TestNothingIsDoneAheadWhileTheyAreBuilt(t *testing.T) {
	f := newFamily(t, 1, 300)
	s := f.children[0]
	if err := f.pager.Expect(s.Pid, s.maps); err != nil {
		t.Fatal(err)
	}
	f.serve()
	f.attach(t, 0)
	for i := range 5 { // in chunks side by side: of a process that runs it would be a stream
		s.checkAt(t, s.Thread, s.Addr(16*i), 16*i*page.Size, page.Size)
	}
	<-f.pager.Serving()
	for end := time.Now().Add(uffdtest.Timeout); !f.pager.session.resting.Load(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("the reader does not come to rest")
		}
	}
	if st := f.pager.Stats(); st.InstalledBytes != 5*page.Size {
		t.Errorf("%d bytes were installed for 5 pages", st.InstalledBytes)
	}
	f.pager.Gathered()
	f.wait(t)
	s.check(t, s.Thread)
}

// A successor knows who had come, and forgets who was only expected.
func TestReplayOfThoseWhoCame(t *testing.T) {
	w := &world{}
	maps := func(i int) []page.Mapping {
		return []page.Mapping{{Range: page.RangeOf(0x10000, page.Size), Image: page.Addr(i) * page.Size, PageSize: page.Size}}
	}
	for i := range 3 {
		l, err := newLayout(maps(i))
		if err != nil {
			t.Fatal(err)
		}
		w.add(-1, 100+i, l)
	}
	j, err := newJournal(w)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	for _, i := range []int{2, 0, 5} { // the last one as a surprise, which writes a new snapshot
		if _, err := j.arrive(w, 50+i, Target{Pid: 100 + i}, maps(i)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, j.size)
		if _, err := unix.Pread(j.file, b, 0); err != nil {
			t.Fatal(err)
		}
		got, err := replay(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range w.spaces {
			if o := got.find(m.id); o == nil || o.fd != m.fd || o.pid != m.pid || len(o.byProc) != 1 {
				t.Errorf("after %d: space %d is %+v, want %+v", i, m.id, o, m)
			}
		}
	}
	j.leave()
	left, err := leftOfSelf(t).Held(t.Context())
	want := []Held{{100, 50}, {102, 52}, {105, 55}}
	if err != nil || !slices.Equal(left, want) {
		t.Errorf("Left = %v, %v, want %v", left, err, want)
	}
}

func leftOfSelf(t *testing.T) *Leftover {
	t.Helper()
	k, err := OpenLeft(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// The reader of a tree that is being built is awake for a while after a fault, no
// longer, and not while a fault waits for memory or for descriptors: those are tried
// again by rest alone, however soon the next fault comes.
func TestReaderIsAwakeForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		se := &session{start: time.Now()}
		se.forming.Store(true)
		r := &reader{worker: worker{session: se}}
		if se.lastFault.Store(-almost); r.almostBuilt() {
			t.Error("awake without a fault")
		}
		if se.lastFault.Store(se.now()); !r.almostBuilt() {
			t.Error("not awake right after a fault")
		}
		if r.later = make([]fault, 1); r.almostBuilt() {
			t.Error("awake while a fault waits for memory")
		}
		r.later = nil
		if r.crowded = true; r.almostBuilt() {
			t.Error("awake while an event waits for a descriptor")
		}
		r.crowded = false
		if time.Sleep(time.Duration(almost) - 1); !r.almostBuilt() {
			t.Error("asleep too early")
		}
		if time.Sleep(time.Nanosecond); r.almostBuilt() {
			t.Error("awake for ever")
		}
		se.lastFault.Store(se.now())
		if se.forming.Store(false); r.almostBuilt() {
			t.Error("awake for a tree that is built")
		}
	})
}
