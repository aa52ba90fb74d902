package pager

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// The images here have a page to a chunk, and so an index of several segments
// for some MiB.
const (
	segmentPages = 1024
	segmentSize  = segmentPages * (24 + 16 + 16) // of a segment, where no page is zero
	indexHeader  = 16
)

// A slowIndex is a source that is not in memory, and does what a test says
// before it reads a segment of the index.
type slowIndex struct {
	image.Source
	before func(ctx context.Context, segment int) error
}

func (s *slowIndex) ReadRange(ctx context.Context, object string, p []byte, off int64, lane image.Lane) error {
	if object == image.IndexObject && (off-indexHeader)%segmentSize == 0 {
		if err := s.before(ctx, int(off-indexHeader)/segmentSize); err != nil {
			return err
		}
	}
	return s.Source.ReadRange(ctx, object, p, off, lane)
}

// bySegments is a setting with three segments, the last one not full.
func bySegments(bg Background, before func(ctx context.Context, segment int) error) setting {
	return setting{
		child:  uffdtest.Options{Pages: 3000},
		writer: image.WriterOptions{ChunkSize: page.Size},
		pager:  Options{Background: bg},
		source: func(m *imagetest.Mem) image.Source { return &slowIndex{m, before} },
	}
}

// holding holds back segment 1 until release is called.
func holding() (before func(context.Context, int) error, release func()) {
	held := make(chan struct{})
	return func(ctx context.Context, segment int) error {
		if segment == 1 {
			select {
			case <-held:
			case <-ctx.Done():
			}
		}
		return ctx.Err()
	}, func() { close(held) }
}

// Faults are served while a segment of the index that they do not need is on
// its way, and those that need it are when it comes; each is counted once.
func TestFaultsPassAHeldSegment(t *testing.T) {
	for _, bg := range []Background{None, Full} {
		t.Run(bg.String(), func(t *testing.T) {
			before, release := holding()
			set := bySegments(bg, before)
			set.child.Threads = 3
			s := serveChild(t, set)
			waits := []*uffdtest.Reply{s.Threads[1].Load(s.Addr(1500)), s.Threads[2].Load(s.Addr(1501))}
			until(t, "the two do not touch their pages", func() bool { return s.pager.Stats().Faults == 2 })
			for _, i := range []int{0, 1023, 2048, 2999} {
				if got, want := s.Load(s.Addr(i)).Wait(t), uint64(s.want[i*page.Size]); got != want {
					t.Errorf("page %d begins with %d, want %d", i, got, want)
				}
			}
			if waits[0].Ready(20*time.Millisecond) || waits[1].Ready(0) {
				t.Error("a page was read of which the index is not there")
			}
			release()
			for k, reply := range waits {
				if got, want := reply.Wait(t), uint64(s.want[(1500+k)*page.Size]); got != want {
					t.Errorf("page %d begins with %d, want %d", 1500+k, got, want)
				}
			}
			if n := s.pager.Stats().Faults; bg == None && n != 6 {
				t.Errorf("%d faults are counted, want 6", n)
			}
			s.check(t, s.Thread)
			if bg == Full {
				if err := s.wait(t); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// What a process does to its memory before the index of it has come holds.
func TestEventsWhileTheIndexComes(t *testing.T) {
	for _, bg := range []Background{None, Full} {
		t.Run(bg.String(), func(t *testing.T) {
			before, release := holding()
			s := serveChild(t, bySegments(bg, before))
			s.Load(s.Addr(7)).Wait(t)
			s.Madvise(s.Addr(1000), 100*page.Size, unix.MADV_DONTNEED).Wait(t) // in two segments
			th, pid := s.Fork(t)
			pid.Wait(t)
			s.Madvise(s.Addr(1200), 100*page.Size, unix.MADV_DONTNEED).Wait(t)
			to := s.Start + 1<<30
			th.Mremap(s.Addr(1400), 100*page.Size, 100*page.Size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, to).Wait(t)
			th.Munmap(s.Addr(1600), 100*page.Size).Wait(t)
			release()
			zero(t, s.Thread, s.Addr(1000), 100*page.Size)
			zero(t, th, s.Addr(1000), 100*page.Size)
			zero(t, s.Thread, s.Addr(1200), 100*page.Size)
			s.checkAt(t, th, to, 1400*page.Size, 100*page.Size)
			for _, r := range [][2]int{{0, 1000}, {1100, 1200}, {1300, 3000}} {
				s.checkAt(t, s.Thread, s.Addr(r[0]), r[0]*page.Size, (r[1]-r[0])*page.Size)
			}
			for _, r := range [][2]int{{0, 1000}, {1100, 1400}, {1500, 1600}, {1700, 3000}} {
				s.checkAt(t, th, s.Addr(r[0]), r[0]*page.Size, (r[1]-r[0])*page.Size)
			}
			if bg == Full {
				if err := s.wait(t); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// peek reads a page of the process as a system call does.
func (s *served) peek(addr uint64) ([]byte, error) {
	got := make([]byte, page.Size)
	local := []unix.Iovec{{Base: &got[0], Len: page.Size}}
	from := []unix.RemoteIovec{{Base: uintptr(addr), Len: page.Size}}
	_, err := unix.ProcessVMReadv(s.Pid, local, from, 0)
	return got, err
}

// Memory of which the index is damaged, or cannot be had, is lost; all other is
// not. So it is for a child that was forked before.
func TestLostSegmentPoisons(t *testing.T) {
	damaged := bySegments(None, nil)
	damaged.source = nil
	damaged.damage = func(m *imagetest.Mem, _ *image.Index) {
		b := bytes.Clone(m.Get(image.IndexObject))
		b[indexHeader+segmentSize+1000] ^= 4
		m.Set(image.IndexObject, b)
	}
	gone := bySegments(None, func(_ context.Context, segment int) error {
		if segment == 1 {
			return errLink
		}
		return nil
	})
	gone.pager.OnLost, gone.pager.Retry = Poison, 20*time.Millisecond
	for name, tt := range map[string]struct {
		setting
		want error
	}{"damaged": {damaged, image.ErrDamaged}, "gone": {gone, errLink}} {
		for _, bg := range []Background{None, Full} {
			t.Run(name+"/"+bg.String(), func(t *testing.T) {
				uffdtest.Need(t, "POISON")
				set := tt.setting
				set.pager.Background = bg
				s := serveChild(t, set)
				th, pid := s.Fork(t)
				child := *s
				child.Child = &uffdtest.Child{Pid: int(pid.Wait(t))}
				for i := 0; i < 3000; i += 13 {
					for _, who := range []*served{s, &child} {
						got, err := who.peek(s.Addr(i))
						if i/segmentPages == 1 {
							if err == nil {
								t.Fatalf("page %d of the lost segment was read", i)
							}
						} else if err != nil || uffdtest.Sum(got) != uffdtest.Sum(s.want[i*page.Size:(i+1)*page.Size]) {
							t.Fatalf("page %d: %v, or wrong", i, err)
						}
					}
				}
				if _, err := th.Load(s.Addr(1024)).Result(); !uffdtest.Gone(err) {
					t.Errorf("the thread that touched it: %v, want its end by SIGBUS", err)
				}
				if bg == None {
					s.Kill()
				}
				err := s.wait(t)
				var lost *LostError
				if !errors.As(err, &lost) || !errors.Is(err, tt.want) {
					t.Errorf("Serve = %v, want a LostError with the reason", err)
				}
				if _, err := s.peek(s.Addr(1501)); bg == Full && err == nil {
					t.Error("a page of the lost segment was read that nobody had touched while it was served")
				}
				if name == "damaged" && len(s.mem.Rejected()) == 0 {
					t.Error("the source was not told")
				}
			})
		}
	}
}

// A process that comes when a segment is lost already, and one whose memory is not all
// registered by then, is let go only when what it has of it is poisoned.
func TestLostSegmentPoisonsLater(t *testing.T) {
	const pages = 100
	damage := func(m *imagetest.Mem) {
		b := bytes.Clone(m.Get(image.IndexObject))
		b[indexHeader+1000] ^= 4
		m.Set(image.IndexObject, b)
	}
	for name, expected := range map[string]bool{"attached": false, "expected": true} {
		t.Run(name, func(t *testing.T) {
			uffdtest.Need(t, "POISON")
			f := familyOf(t, 2, pages, image.WriterOptions{ChunkSize: page.Size}, damage)
			if expected {
				for _, s := range f.children {
					if err := f.pager.Expect(s.Pid, s.maps); err != nil {
						t.Fatal(err)
					}
				}
			}
			f.serve()
			early := f.children[0].FD
			later := uint64(pages / 2 * page.Size)
			if err := early.Unregister(f.children[0].Start+later, later); err != nil {
				t.Fatal(err)
			}
			a := f.attach(t, 0)
			if _, err := a.peek(a.Addr(3)); err == nil {
				t.Error("a page of the lost segment was read")
			}
			if _, err := early.Register(a.Start+later, later, uffd.ModeMissing); err != nil {
				t.Fatal(err)
			}
			b := f.attach(t, 1)
			th, pid := b.Fork(t)
			child := *b
			child.Child = &uffdtest.Child{Pid: int(pid.Wait(t))}
			f.pager.Gathered()
			select {
			case err := <-f.done:
				if !errors.Is(err, image.ErrDamaged) {
					t.Errorf("ServeAttached = %v, want a LostError with the reason", err)
				}
			case <-time.After(uffdtest.Timeout):
				t.Fatal("ServeAttached does not return")
			}
			for who, s := range map[string]*served{"first": a, "second": b, "forked": &child} {
				for off := uint64(0); off < pages*page.Size; off += page.Size {
					if got, err := s.peek(uint64(s.maps[0].Start) + off); err == nil {
						t.Fatalf("the %s process reads %d %d bytes into the lost segment", who, got[0], off)
					}
				}
			}
			if _, err := th.Load(b.Addr(7)).Result(); !uffdtest.Gone(err) {
				t.Errorf("the thread that touched it: %v, want its end by SIGBUS", err)
			}
		})
	}
}

// A loss that a process has met is told of also where it ends before the rest is poisoned.
func TestLostSegmentOfAnEndedProcess(t *testing.T) {
	uffdtest.Need(t, "POISON")
	f := familyOf(t, 1, 100, image.WriterOptions{ChunkSize: page.Size}, func(m *imagetest.Mem) {
		b := bytes.Clone(m.Get(image.IndexObject))
		b[indexHeader+1000] ^= 4
		m.Set(image.IndexObject, b)
	})
	f.serve()
	s := f.attach(t, 0)
	if _, err := s.peek(s.Addr(3)); err == nil {
		t.Error("a page of the lost segment was read")
	}
	s.Kill() // while it is being built: nothing is poisoned unasked
	f.pager.mu.Lock()
	spaces := &f.pager.session.spaces
	f.pager.mu.Unlock()
	for end := time.Now().Add(uffdtest.Timeout); len(*spaces.Load()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it still has the userfaultfd of the process")
		}
	}
	f.pager.Gathered()
	select {
	case err := <-f.done:
		if !errors.Is(err, image.ErrDamaged) {
			t.Errorf("ServeAttached = %v, want a LostError with the reason", err)
		}
	case <-time.After(uffdtest.Timeout):
		t.Fatal("ServeAttached does not return")
	}
}

// With Kill nobody sees a byte of it.
func TestLostSegmentKills(t *testing.T) {
	set := bySegments(None, func(context.Context, int) error { return errLink })
	set.pager.OnLost, set.pager.Retry = Kill, 20*time.Millisecond
	s := serveChild(t, set)
	if got, err := s.Load(s.Addr(9)).Result(); !uffdtest.Gone(err) {
		t.Errorf("the thread that touched a lost page: %d, %v, want its end", got, err)
	}
	if err := s.wait(t); !errors.Is(err, errLink) {
		t.Errorf("Serve = %v, want a LostError with the reason", err)
	}
	if n := s.pager.Stats().PoisonedBytes; n != 0 {
		t.Errorf("%d bytes were poisoned", n)
	}
}

// An index that comes late is waited for, whatever time it takes.
func TestIndexComesBack(t *testing.T) {
	var back atomic.Bool
	tries := make(chan struct{}, 1)
	set := bySegments(Full, func(context.Context, int) error {
		if back.Load() {
			return nil
		}
		select {
		case tries <- struct{}{}:
		default:
		}
		return errLink
	})
	set.pager.Retry = time.Millisecond
	s := serveChild(t, set)
	reply := s.Load(s.Addr(9))
	for range 4 {
		<-tries
	}
	back.Store(true)
	if got, want := reply.Wait(t), uint64(s.want[9*page.Size]); got != want {
		t.Errorf("page 9 begins with %d, want %d", got, want)
	}
	s.check(t, s.Thread)
	if err := s.wait(t); err != nil {
		t.Error(err)
	}
}

// A process that has given up all of its memory misses nothing, whatever the
// index would say.
func TestNothingIsLeftToLookUp(t *testing.T) {
	s := serveChild(t, bySegments(None, func(context.Context, int) error { return errLink }))
	s.Munmap(s.Start, s.Length).Wait(t)
	if err := s.wait(t); err != nil {
		t.Error(err)
	}
	if st := s.pager.Stats(); st.Resident == 0 || st.MissingBytes != 0 {
		t.Errorf("Stats = %+v", st)
	}
}

// What the index has not told yet may be missing, and all of it is.
func TestRemainingWithoutTheIndex(t *testing.T) {
	set := bySegments(None, func(_ context.Context, segment int) error {
		if segment == 1 {
			return errLink
		}
		return nil
	})
	set.writer.ChunkSize = page.Size
	s := serveChild(t, set)
	s.Load(s.Addr(21)).Wait(t)
	s.Madvise(s.Addr(1300), 8*page.Size, unix.MADV_DONTNEED).Wait(t)
	var got page.Set
	for _, m := range s.pager.Remaining() {
		got.Add(m.Range)
	}
	for i := range 3000 {
		want := i != 21 && (i < 1300 || i >= 1308)
		if got.Contains(page.Addr(s.Addr(i))) != want {
			t.Fatalf("page %d is listed: %v", i, !want)
		}
	}
	if n := s.pager.Stats().MissingBytes; n != (3000-9)*page.Size {
		t.Errorf("%d bytes are missing, want %d", n, (3000-9)*page.Size)
	}
}

// Huge pages are put together of frames that several segments list; of a
// damaged one they are lost as wholes.
func TestHugePagesAcrossSegments(t *testing.T) {
	uffdtest.Need(t, "hugetlb", "POISON")
	for _, bg := range []Background{None, Full} {
		for _, damaged := range []bool{false, true} {
			t.Run(bg.String()+map[bool]string{false: "", true: "/damaged"}[damaged], func(t *testing.T) {
				set := setting{
					child:  uffdtest.Options{Pages: 4, Kind: uffdtest.Hugetlb},
					writer: image.WriterOptions{ChunkSize: page.Size},
					pager:  Options{Background: bg},
					zero:   func(i int) bool { return i%512 > 400 }, // so the border is in page 2
				}
				if damaged {
					set.damage = func(m *imagetest.Mem, _ *image.Index) {
						b := bytes.Clone(m.Get(image.IndexObject))
						b[indexHeader+segmentSize+1000] ^= 4
						m.Set(image.IndexObject, b)
					}
				}
				s := serveChild(t, set)
				for i := range 4 {
					got, err := s.peek(s.Addr(i))
					if damaged && i >= 2 {
						if err == nil {
							t.Errorf("huge page %d was read, of which the index is damaged", i)
						}
					} else if want := s.want[i*s.PageSize:][:page.Size]; err != nil || !bytes.Equal(got, want) {
						t.Errorf("huge page %d: %v, or wrong", i, err)
					}
				}
				if !damaged {
					s.check(t, s.Thread)
				}
				if bg == None {
					s.Kill()
				}
				if err := s.wait(t); damaged != errors.Is(err, image.ErrDamaged) {
					t.Errorf("Serve = %v", err)
				}
			})
		}
	}
}

// A filedIndex is a source in memory, as a directory is. It notes what of the
// index is read by who can wait.
type filedIndex struct {
	*imagetest.Mem
	segments chan int
}

func (s *filedIndex) File(string) (*os.File, error) { return nil, errLink }

func (s *filedIndex) ReadRange(ctx context.Context, object string, p []byte, off int64, lane image.Lane) error {
	if object == image.IndexObject && (off-indexHeader)%segmentSize == 0 {
		s.segments <- int(off-indexHeader) / segmentSize
	}
	return s.Mem.ReadRange(ctx, object, p, off, lane)
}

// Of an image at hand the index is loaded as it is needed, and the rest of it
// once faults have come for several segments, before they come for all.
func TestRestOfTheIndexIsLoaded(t *testing.T) {
	const rest = 2
	segments := make(chan int, 16)
	s := serveChild(t, setting{
		child:  uffdtest.Options{Pages: (restSegments + rest) * segmentPages},
		writer: image.WriterOptions{ChunkSize: page.Size},
		pager:  Options{Background: None},
		source: func(m *imagetest.Mem) image.Source { return &filedIndex{m, segments} },
	})
	for i := range restSegments {
		if len(segments) > 0 {
			t.Errorf("after faults for %d segments others are loaded", i)
		}
		s.Load(s.Addr(i*segmentPages + 5)).Wait(t)
	}
	for i := range rest {
		if got := <-segments; got != restSegments+i {
			t.Errorf("segment %d is loaded, want %d", got, restSegments+i)
		}
	}
	s.checkAt(t, s.Thread, s.Addr((restSegments+1)*segmentPages), (restSegments+1)*segmentPages*page.Size, 16*page.Size)
}

// What is lost with its part of the index is missing until it is poisoned: a checkpoint would take it for zeros.
func TestMissingUntilPoisoned(t *testing.T) {
	se := fakeSession(t, 8, plainSource)
	s := fakeSpace(t, se, &fakeMemory{})
	se.pages.opened[0].Store(nil)
	se.pages.closed.Add(1)
	se.open(0, errLink)
	missing := func() (n uint64) {
		s.missing(se.pages, func(m page.Mapping) { n += m.Pages() })
		return n
	}
	if n := missing(); n != 8 {
		t.Errorf("%d pages are missing, want 8", n)
	}
	s.owed.n.Add(-1)
	if n := missing(); n != 0 {
		t.Errorf("%d pages are missing that are poisoned", n)
	}
}
