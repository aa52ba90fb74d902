package pager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
	"github.com/lazyrestore/lazyrestore/uffd"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// events is what an engine enables.
const events = uffd.FeatureEventFork | uffd.FeatureEventRemap | uffd.FeatureEventRemove | uffd.FeatureEventUnmap | uffd.FeatureThreadID

// A served is a child with missing memory, the image of it, and a pager at
// work.
type served struct {
	*uffdtest.Child
	want  []byte // what its memory should hold
	maps  []page.Mapping
	mem   *imagetest.Mem
	pager *Pager
	done  chan error // what Serve returned
	stop  context.CancelFunc
}

// A setting is how a test wants its child and pager.
type setting struct {
	child    uffdtest.Options
	writer   image.WriterOptions
	pager    Options
	zero     func(page int) bool                     // pages that are zero in the image; none if nil
	source   func(*imagetest.Mem) image.Source       // what the pager reads from; the image itself if nil
	damage   func(m *imagetest.Mem, ix *image.Index) // done to the image before it is served
	plain    bool                                    // it is one without checksums
	above    bool                                    // the image has another object right above the shared memory
	more     bool                                    // it has a private page, too, that nobody can touch: with shared memory
	nameless bool                                    // faults do not tell whose they are
}

// plainObject is what holds the pages of a plain image.
const plainObject = "plain"

// makeImage fills an image for c's memory.
func (s *served) makeImage(t testing.TB, set setting) *image.Image {
	t.Helper()
	at := page.Addr(s.Start)
	shared := set.child.Kind == uffdtest.Shmem || set.child.Kind == uffdtest.HugetlbShared
	if shared {
		at = page.ImageShared
	}
	s.maps = []page.Mapping{{
		Range: page.RangeOf(page.Addr(s.Start), s.Length), Image: at, PageSize: uint64(s.PageSize), Shared: shared,
	}}
	if shared {
		var file unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/map_files/%x-%x", s.Pid, s.Start, s.Start+s.Length), &file); err != nil {
			t.Fatal(err)
		}
		s.maps[0].Object = page.Object{Range: page.RangeOf(at, s.Length), Dev: file.Dev, Inode: file.Ino}
	}
	s.want = make([]byte, s.Length)
	for i := range int(s.Length) / page.Size {
		if set.zero == nil || !set.zero(i) {
			copy(s.want[i*page.Size:], uffdtest.Pattern(uint64(i)+1, page.Size))
		}
	}
	runs := []imagetest.Run{{At: at, P: s.want}}
	if set.above {
		runs = append(runs, imagetest.Run{At: at + page.Addr(s.Length) + page.Size, P: nonzero(64)})
	}
	if set.more {
		r := page.RangeOf(page.Addr(s.Start)-1<<32, page.Size)
		s.maps = append(s.maps, page.Mapping{Range: r, Image: r.Start, PageSize: page.Size})
		runs = slices.Insert(runs, 0, imagetest.Run{At: r.Start, P: nonzero(1)})
	}
	s.mem, _ = imagetest.Write(t, set.writer, runs...)
	var src image.Source = s.mem
	if set.source != nil {
		src = set.source(s.mem)
	}
	var img *image.Image
	var err error
	if set.plain {
		s.mem.Set(plainObject, s.want)
		img, err = image.NewPlain(src, plainObject, []page.Range{page.RangeOf(at, s.Length)}, 64<<10)
	} else {
		img, err = image.Open(t.Context(), src, image.OpenOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	if set.damage != nil {
		ix, err := img.LoadIndex(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		set.damage(s.mem, ix)
	}
	return img
}

// serveChild starts all three. The child is killed and Serve awaited when the
// test ends.
func serveChild(t testing.TB, set setting) *served {
	t.Helper()
	uffdtest.Need(t, "uffd")
	set.child.Features |= events
	if set.nameless {
		set.child.Features &^= uffd.FeatureThreadID
	}
	if set.writer.Spec.Codec == chunk.None && set.writer.ChunkSize == 0 {
		set.writer.Spec.Codec = chunk.LZ4
	}
	s := &served{Child: uffdtest.Start(t, set.child), done: make(chan error, 1)}
	img := s.makeImage(t, set)
	if set.pager.Logger == nil && testing.Verbose() {
		set.pager.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	var err error
	if s.pager, err = New(img, set.pager); err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(s.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	u := s.FD
	s.FD = nil // the pager's
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		s.done <- s.pager.Serve(ctx, u, Target{Pid: s.Pid, PidFD: pidfd}, s.maps)
	}()
	t.Cleanup(func() {
		s.Kill()
		select {
		case <-finished:
		case <-time.After(uffdtest.Timeout):
			t.Error("Serve does not return after its process is gone")
		}
		cancel()
		_ = unix.Close(pidfd)
	})
	return s
}

// wait waits for Serve.
func (s *served) wait(t testing.TB) error {
	t.Helper()
	select {
	case err := <-s.done:
		return err
	case <-time.After(uffdtest.Timeout):
		t.Fatal("Serve does not return")
		return nil
	}
}

// check compares all of the child's memory, as th sees it.
func (s *served) check(t testing.TB, th *uffdtest.Thread) {
	t.Helper()
	s.checkAt(t, th, s.Start, 0, len(s.want))
}

// checkAt compares the memory at addr with what was at off in the image.
func (s *served) checkAt(t testing.TB, th *uffdtest.Thread, addr uint64, off, n int) {
	t.Helper()
	const step = 64 << 10
	for i := 0; i < n; i += step {
		k := min(step, n-i)
		want := uffdtest.Sum(s.want[off+i : off+i+k])
		if got := th.Sum(addr+uint64(i), uint64(k)).Wait(t); got != want {
			t.Fatalf("memory at %#x, %d bytes on: sum %#x, want %#x", addr, i, got, want)
		}
	}
}

func TestServeUntilResident(t *testing.T) {
	for _, codec := range []chunk.Codec{chunk.None, chunk.LZ4, chunk.Zstd} {
		for _, kind := range []uffdtest.Kind{uffdtest.Anonymous, uffdtest.Shmem} {
			t.Run(codec.String()+map[uffdtest.Kind]string{uffdtest.Anonymous: "/private", uffdtest.Shmem: "/shared"}[kind], func(t *testing.T) {
				s := serveChild(t, setting{
					child:  uffdtest.Options{Pages: 2000, Kind: kind},
					writer: image.WriterOptions{Spec: chunk.Spec{Codec: codec}, ChunkSize: 64 << 10},
					zero:   func(i int) bool { return i%7 == 3 || i/100 == 5 },
				})
				s.check(t, s.Thread)
				if err := s.wait(t); err != nil {
					t.Fatal(err)
				}
				s.check(t, s.Thread)
				goleak.VerifyNone(t)
				if st := s.pager.Stats(); st.MissingBytes != 0 || st.PoisonedBytes != 0 || st.InstalledBytes == 0 || st.Resident == 0 {
					t.Errorf("Stats = %+v", st)
				}
				if left := s.pager.Remaining(); len(left) > 0 {
					t.Errorf("Remaining = %v", left)
				}
			})
		}
	}
}

// Until the process is let go faults are answered, and nothing is brought that
// nobody waits for.
func TestServeBeforeItRuns(t *testing.T) {
	const pages, chunkPages, touches = 8000, 16, 50
	runs := make(chan struct{})
	s := serveChild(t, setting{
		child: uffdtest.Options{Pages: pages}, writer: image.WriterOptions{ChunkSize: chunkPages * page.Size}, pager: Options{Runs: runs},
	})
	for i := range touches {
		at := i * pages / touches
		if got, want := s.Load(s.Addr(at)).Wait(t), uint64(s.want[at*page.Size]); got != want {
			t.Errorf("page %d begins with %d, want %d", at, got, want)
		}
	}
	if st := s.pager.Stats(); st.InstalledBytes > touches*chunkPages*page.Size {
		t.Errorf("after %d touches %d bytes are there", touches, st.InstalledBytes)
	}
	close(runs)
	if err := s.wait(t); err != nil {
		t.Fatal(err)
	}
	s.check(t, s.Thread)
}

func TestServeUntilGone(t *testing.T) {
	s := serveChild(t, setting{child: uffdtest.Options{Pages: 64}, pager: Options{Background: None}})
	if got, want := s.Load(s.Addr(5)).Wait(t), uint64(s.want[5*page.Size]); got != want {
		t.Errorf("page 5 begins with %d, want %d", got, want)
	}
	s.Kill()
	if err := s.wait(t); err != nil {
		t.Fatal(err)
	}
	if st := s.pager.Stats(); st.Faults != 1 || st.Resident != 0 {
		t.Errorf("Stats = %+v", st)
	}
}

func TestServeCancelled(t *testing.T) {
	s := serveChild(t, setting{child: uffdtest.Options{Pages: 64}, pager: Options{Background: None}})
	s.Load(s.Addr(5)).Wait(t)
	s.stop()
	if err := s.wait(t); !errors.Is(err, context.Canceled) {
		t.Fatalf("Serve = %v, want the context's error", err)
	}
	goleak.VerifyNone(t)
	if s.Load(s.Addr(50)).Ready(20 * time.Millisecond) {
		t.Error("a missing page was read though nobody serves it")
	}
}

// sized is a source that notes how much is read at a time by who cannot wait.
type sized struct {
	*imagetest.Mem
	sizes chan int
}

func (s sized) ReadNow(object string, p []byte, off int64) (bool, error) {
	select {
	case s.sizes <- len(p):
	default:
	}
	return s.Mem.ReadNow(object, p, off)
}

// Of an image whose pages can be had one by one, a fault takes one, and the
// others of its frame come when nobody waits, a piece at a time while faults come.
func TestServePlain(t *testing.T) {
	for try := 0; !servePlain(t); try++ {
		if try == 20 { // each of which took a millisecond from the fault on
			t.Fatal("the others of a frame never come in pieces")
		}
	}
}

// servePlain reports whether the frame came in small pieces: a fault has just been then.
func servePlain(t *testing.T) (pieces bool) {
	t.Helper()
	sizes := make(chan int, 64)
	s := serveChild(t, setting{
		child: uffdtest.Options{Pages: 64}, pager: Options{Background: None}, plain: true,
		source: func(m *imagetest.Mem) image.Source { return sized{m, sizes} },
	})
	if got, want := s.Load(s.Addr(21)).Wait(t), uint64(s.want[21*page.Size]); got != want {
		t.Errorf("page 21 begins with %d, want %d", got, want)
	}
	if first := <-sizes; first != page.Size {
		t.Errorf("a fault reads %d bytes", first)
	}
	for left := 64 << 10; left > 0; {
		n := <-sizes
		pieces = pieces || n == smallPiece
		if left -= n; left < 0 {
			t.Errorf("%d bytes of the frame were read twice", -left)
		}
	}
	s.check(t, s.Thread)
	if err := s.wait(t); err != nil {
		t.Fatal(err)
	}
	return pieces
}

// That the background has found nothing is true until there is more, whoever of it
// ends a last span after that.
func TestExhaustedUntilWoken(t *testing.T) {
	se := fakeSession(t, 8, plainSource)
	fakeSpace(t, se, &fakeMemory{})
	w := &filler{worker: *se.newWorker("background"), behind: new(thread.Behind)}
	defer w.close()
	for i := range w.slots {
		w.slots[i].frames = w.newFrames()
		defer w.slots[i].frames.Close()
	}
	se.streaming.Store(true) // it installs what it fetches itself
	se.exhausted.Store(true) // by another one
	if !w.work(t.Context()) || !se.exhausted.Load() {
		t.Error("a span that was under way undoes that another has found nothing")
	}
	se.wakeBackground()
	if se.exhausted.Load() {
		t.Error("more has come, and there is nothing to do")
	}
	for w.work(t.Context()) {
	}
	if !se.exhausted.Load() || se.busy.Load() != 0 {
		t.Errorf("nothing was found: exhausted %v, busy %d", se.exhausted.Load(), se.busy.Load())
	}
}

// What has been begun and not finished is given to the background when that has
// found nothing else. To look for it takes its time, and a fault may wait.
func TestLeftoversWaitForTheRest(t *testing.T) {
	se := fakeSession(t, 8, plainSource)
	s := fakeSpace(t, se, &fakeMemory{})
	r := &reader{worker: *se.newWorker("reader"), requeue: -int64(requeuePause)}
	defer r.close()
	s.order.claim(0)
	for _, exhausted := range []bool{false, true} {
		se.exhausted.Store(exhausted)
		if over, err := r.review(); over || err != nil {
			t.Fatal(over, err)
		}
		if s.order.claimed.get(0) == exhausted {
			t.Errorf("the background has found nothing: %v, and the frame is taken: %v", exhausted, !exhausted)
		}
		r.requeue = -int64(requeuePause)
	}
}
