package pager

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// A fakeMemory is an address space that answers as the kernel does.
type fakeMemory struct {
	vmas []page.Range

	mu     sync.Mutex
	pages  map[page.Addr]byte // guarded by mu: the first byte of each page that is there
	lost   map[page.Addr]bool // guarded by mu: poisoned pages
	woken  []uint64           // guarded by mu
	refuse func() error       // asked before each page; nil to go on
}

func (m *fakeMemory) fill(dst, n uint64, put func(a page.Addr, off uint64)) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := page.RangeOf(page.Addr(dst), n)
	inside := false
	for _, v := range m.vmas {
		inside = inside || v.Covers(r)
	}
	if !inside {
		return 0, unix.ENOENT
	}
	for off := uint64(0); off < n; off += page.Size {
		a := r.Start + page.Addr(off)
		err := m.refuse()
		if _, ok := m.pages[a]; ok || m.lost[a] {
			err = unix.EEXIST
		}
		if err != nil {
			if off > 0 {
				return int64(off), unix.EAGAIN
			}
			return 0, err
		}
		put(a, off)
	}
	return int64(n), nil
}

func (m *fakeMemory) Copy(dst uint64, src []byte, _ uffd.CopyMode) (int64, error) {
	return m.fill(dst, uint64(len(src)), func(a page.Addr, off uint64) { m.pages[a] = src[off] })
}

func (m *fakeMemory) CopyNow(dst uint64, src []byte, mode uffd.CopyMode) (int64, error) {
	return m.Copy(dst, src, mode)
}

func (m *fakeMemory) ZeroNow(start, length uint64, _ uffd.CopyMode) (int64, error) {
	return m.fill(start, length, func(a page.Addr, _ uint64) { m.pages[a] = 0 })
}

func (m *fakeMemory) Poison(start, length uint64, _ uffd.CopyMode) (int64, error) {
	return m.fill(start, length, func(a page.Addr, _ uint64) { m.lost[a] = true })
}

func (m *fakeMemory) Wake(start, _ uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.woken = append(m.woken, start)
	return nil
}

// fakeSession is a session for an image of pages at testBase, whose bytes are
// all their number, in chunks of four.
func fakeSession(t testing.TB, pages int, src func(*imagetest.Mem) image.Source) *session {
	t.Helper()
	return fakeSessionAt(t, testBase, pages, src)
}

func fakeSessionAt(t testing.TB, at page.Addr, pages int, src func(*imagetest.Mem) image.Source) *session {
	t.Helper()
	var p []byte
	for i := range pages {
		for range page.Size {
			p = append(p, byte(i+1))
		}
	}
	mem, _ := imagetest.Write(t, image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}, ChunkSize: 4 * page.Size}, imagetest.Run{At: at, P: p})
	return fakeSessionOf(t, mem, src)
}

func fakeSessionOf(t testing.TB, mem *imagetest.Mem, src func(*imagetest.Mem) image.Source) *session {
	t.Helper()
	img, err := image.Open(t.Context(), src(mem), image.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return fakeSessionIn(t, img)
}

func fakeSessionIn(t testing.TB, img *image.Image) *session {
	t.Helper()
	table, err := openTable(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	kickFD, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(kickFD) })
	stats := &counters{}
	se := &session{
		img: img, pages: table, stats: stats,
		retries: retries{retry: time.Minute, onLost: Poison, outage: &stats.outage, log: slog.New(slog.DiscardHandler)},
		lost:    &lostErrors{first: make(chan struct{})}, start: time.Now(), kickFD: kickFD,
	}
	se.spaces.Store(new([]*space))
	for i := range table.Segments() {
		if err := se.loadSegment(t.Context(), i, image.Demand); err != nil {
			t.Fatal(err)
		}
		se.open(i, nil)
	}
	return se
}

// fakeSpace is a space of se's image in m.
func fakeSpace(t rapid.TB, se *session, m *fakeMemory) *space {
	t.Helper()
	n := uint64(se.pages.room()) * page.Size
	l, err := newLayout([]page.Mapping{{Range: page.RangeOf(testBase, n), Image: testBase, PageSize: page.Size}})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{}
	s := newSpace(se.pages, w.add(-1, 1, l), nil, m, nil)
	se.spaces.Store(&[]*space{s})
	se.demand = newDemand(se, 4)
	return s
}

// A page that is moved while it is copied is not gone: the kernel says so when
// it is asked again. One that is gone leaves nobody waiting.
func TestApplyDoubtsThatPagesAreGone(t *testing.T) {
	for _, c := range []struct {
		name    string
		says    []error // of the kernel, about the third of four pages
		want    outcome
		settled int // bytes
	}{
		{"moved", []error{unix.ENOENT, unix.EAGAIN}, again, 2 * page.Size},
		{"gone", []error{unix.ENOENT, unix.ENOENT}, there, 4 * page.Size},
		{"was moved", []error{unix.ENOENT, nil}, there, 4 * page.Size},
	} {
		t.Run(c.name, func(t *testing.T) {
			const third = testBase + 2*page.Size
			m := &fakeMemory{}
			settled := 0
			out, err := apply(m, testBase, 4*page.Size, page.Size, func(dst page.Addr, _, n int) (int64, error) {
				switch {
				case n > page.Size:
					return 0, unix.ENOENT // they lie in mappings of their own
				case dst == third:
					err := c.says[0]
					c.says = c.says[1:]
					if err != nil {
						n = 0
					}
					return int64(n), err
				}
				return int64(n), nil
			}, func(_, n int, _ outcome) { settled += n })
			if out != c.want || settled != c.settled {
				t.Errorf("outcome %d (%v) with %d bytes settled, want %d with %d", out, err, settled, c.want, c.settled)
			}
			if c.name == "gone" && !slices.Contains(m.woken, uint64(third)) {
				t.Errorf("woken are %#x, not the page that is gone", m.woken)
			}
		})
	}
}

func plainSource(m *imagetest.Mem) image.Source { return m }

// However the address space is cut up, and whatever is there already, an
// install fills what is missing with the right bytes, and only that.
func TestInstallWhateverTheKernelSays(t *testing.T) {
	const pages = 16
	se := fakeSession(t, pages, plainSource)
	rapid.Check(t, func(rt *rapid.T) {
		m := &fakeMemory{pages: map[page.Addr]byte{}, lost: map[page.Addr]bool{}}
		at := testBase
		for at < testBase+pages*page.Size {
			n := uint64(rapid.IntRange(1, pages).Draw(rt, "mapping")) * page.Size
			if rapid.IntRange(0, 3).Draw(rt, "there") > 0 {
				m.vmas = append(m.vmas, page.RangeOf(at, n))
			}
			at += page.Addr(n)
		}
		for i := range pages {
			if rapid.IntRange(0, 5).Draw(rt, "present") == 0 {
				m.pages[testBase+page.Addr(i)*page.Size] = 200
			}
		}
		m.refuse = func() error {
			if rapid.IntRange(0, 4).Draw(rt, "changing") == 0 {
				return unix.EAGAIN
			}
			return nil
		}
		s := fakeSpace(rt, se, m)
		before, counted := len(m.pages), se.stats.installed.Load()
		w := se.newWorker("test")
		defer w.close()
		for frame := range se.pages.Frames() {
			plain, err := w.fetch(t.Context(), frame, image.Background)
			if err != nil {
				rt.Fatal(err)
			}
			if err := w.installFrames(t.Context(), s, plain, frame, 1); err != nil {
				rt.Fatal(err)
			}
		}
		if left := s.left.Load(); left != 0 {
			rt.Fatalf("%d pages are still missing", left)
		}
		for i := range pages {
			a := testBase + page.Addr(i)*page.Size
			mapped := false
			for _, v := range m.vmas {
				mapped = mapped || v.Contains(a)
			}
			got, ok := m.pages[a]
			switch {
			case mapped && !ok:
				rt.Fatalf("page %d is missing", i)
			case ok && got != byte(i+1) && got != 200:
				rt.Fatalf("page %d holds %d", i, got)
			}
		}
		if want := uint64(len(m.pages)-before) * page.Size; se.stats.installed.Load()-counted != want {
			rt.Fatalf("installed %d bytes, counted %d", want, se.stats.installed.Load()-counted)
		}
	})
}

// A memoryBeingMade is registered as a whole, and said to be, right after a page was found not to be.
type memoryBeingMade struct {
	*fakeMemory
	se    *session
	whole page.Range
}

func (m memoryBeingMade) Wake(start, n uint64) error {
	m.vmas = append(m.vmas, m.whole)
	m.se.forming.Store(false)
	return m.fakeMemory.Wake(start, n)
}

// A page that had no place while mappings were made is still wanted when they have all
// been made by the time that this is booked: else it would read as zeros.
func TestLastMappingIsMadeMeanwhile(t *testing.T) {
	se := fakeSession(t, 4, plainSource)
	w := se.newWorker("test")
	defer w.close()
	plain, err := w.fetch(t.Context(), 0, image.Demand)
	if err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func(s *space) error{
		"install": func(s *space) error { return w.installFrames(t.Context(), s, plain, 0, 1) },
		"poison":  func(s *space) error { return w.lose(t.Context(), s, 0, errLink) },
	} {
		t.Run(name, func(t *testing.T) {
			m := &fakeMemory{
				vmas: []page.Range{page.RangeOf(testBase, 2*page.Size)}, pages: map[page.Addr]byte{}, lost: map[page.Addr]bool{},
				refuse: func() error { return nil },
			}
			s := fakeSpace(t, se, m)
			s.mem = memoryBeingMade{m, se, page.RangeOf(testBase, 4*page.Size)}
			se.forming.Store(true)
			for range 2 {
				if err := do(s); err != nil {
					t.Fatal(err)
				}
			}
			if n := len(m.pages) + len(m.lost); n != 4 {
				t.Errorf("%d pages of 4 are there or lost", n)
			}
		})
	}
}

// Memory that is short for a while is waited for, with growing pauses.
func TestInstallWaitsForMemory(t *testing.T) {
	m := &fakeMemory{vmas: []page.Range{page.RangeOf(testBase, 4*page.Size)}, pages: map[page.Addr]byte{}}
	se := fakeSession(t, 4, plainSource)
	s := fakeSpace(t, se, m)
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		se.start = start
		asked := 0
		m.refuse = func() error {
			asked++
			if time.Since(start) < 5*time.Second {
				return unix.ENOMEM
			}
			return nil
		}
		w := se.newWorker("test")
		plain, err := w.fetch(t.Context(), 0, image.Demand)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.installFrames(t.Context(), s, plain, 0, 1); err != nil {
			t.Fatal(err)
		}
		if len(m.pages) != 4 || asked > 100 || time.Since(start) > 6*time.Second {
			t.Errorf("%d pages are there after %v and %d tries", len(m.pages), time.Since(start), asked)
		}
	})
}

// A read that fails is tried again for Options.Retry, with pauses that grow,
// and then given up.
func TestFetchGivesUp(t *testing.T) {
	var r *remote
	se := fakeSession(t, 4, remoteOf(&r, func(context.Context, image.Lane) error { return errLink }))
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		_, err := se.newWorker("test").fetch(t.Context(), 0, image.Demand)
		if took := time.Since(start); !errors.Is(err, errLink) || took < 58*time.Second || took > time.Minute {
			t.Errorf("fetch = %v after %v", err, took)
		}
		if n := r.reads[r.offset(t, se, 0)]; n < 10 || n > 80 {
			t.Errorf("%d tries in a minute", n)
		}
	})
}

func (r *remote) offset(t *testing.T, se *session, frame int) int64 {
	t.Helper()
	return se.pages.Frame(frame).Offset
}

// Faults on one frame share its flight whenever they come, and each is
// answered; the next fault after the landing begins another, which reads
// nothing: the reader had looked for the page before the landing.
func TestFlights(t *testing.T) {
	var r *remote
	const pages = 8
	m := &fakeMemory{
		vmas: []page.Range{page.RangeOf(testBase, pages*page.Size)}, pages: map[page.Addr]byte{},
		refuse: func() error { return nil },
	}
	se := fakeSession(t, pages, remoteOf(&r, func(ctx context.Context, _ image.Lane) error {
		return sleep(ctx, 10*time.Millisecond)
	}))
	s := fakeSpace(t, se, m)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		se.start = start
		d := newDemand(se, 4)
		for i := range 12 {
			d.add(ctx, flightKey{frame: i % 2}, fault{s: s, addr: testBase + page.Addr(i%2*4+i%4)*page.Size})
			time.Sleep(time.Millisecond / 2)
		}
		time.Sleep(time.Second)
		d.add(ctx, flightKey{frame: 0}, fault{s: s, addr: testBase})
		time.Sleep(time.Second)
		if n := d.pending(); n != 0 {
			t.Errorf("%d flights have not landed", n)
		}
		if len(m.pages) != pages {
			t.Errorf("%d pages are there, want %d", len(m.pages), pages)
		}
		for off, n := range r.reads {
			if n != 1 {
				t.Errorf("the frame at %d was read %d times", off, n)
			}
		}
		cancel()
		d.close()
	})
}

// Small gaps of zeros are filled with what lies around them, and nothing else
// of zeros is.
func TestInstallFillsGaps(t *testing.T) {
	at := func(n int) page.Addr { return testBase + page.Addr(n)*page.Size }
	data := func(pages int) []byte { return bytes.Repeat([]byte{7}, pages*page.Size) }
	const small = maxZero / page.Size
	for _, shared := range []bool{false, true} {
		first := testBase
		if shared {
			first = page.ImageShared
		}
		run := func(n, pages int) imagetest.Run {
			return imagetest.Run{At: first + page.Addr(n)*page.Size, P: data(pages)}
		}
		mem, _ := imagetest.Write(t, image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}, ChunkSize: 4 * page.Size},
			run(0, 2), run(3, 1), // in one frame
			run(4+small, 5), run(10+2*small, 1)) // a page too far
		se := fakeSessionOf(t, mem, plainSource)
		m := &fakeMemory{pages: map[page.Addr]byte{}, lost: map[page.Addr]bool{}, refuse: func() error { return nil }}
		whole := page.Range{Start: testBase, End: at(100)}
		m.vmas = []page.Range{whole}
		m.pages[at(5)] = 9 // the process has written there
		l, err := newLayout([]page.Mapping{{Range: whole, Image: first, PageSize: page.Size, Shared: shared}})
		if err != nil {
			t.Fatal(err)
		}
		s := newSpace(se.pages, (&world{}).add(-1, 1, l), nil, m, nil)
		se.spaces.Store(&[]*space{s})
		w := se.newWorker("")
		for frame := range se.pages.Frames() {
			plain, err := w.frames.Read(t.Context(), frame, image.Background)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.installFrames(t.Context(), s, plain, frame, 1); err != nil {
				t.Fatal(err)
			}
		}
		w.close()
		for n := range 100 {
			want := -1 // missing
			switch {
			case n == 5:
				want = 9
			case n < 2, n == 3, 4+small <= n && n < 9+small, n == 10+2*small:
				want = 7
			case n < 4+small && !shared:
				want = 0
			}
			got := -1
			if b, ok := m.pages[at(n)]; ok {
				got = int(b)
			}
			if got != want {
				t.Errorf("shared %v: page %d holds %d, want %d", shared, n, got, want)
			}
		}
		if zero := se.stats.zero.Load(); !shared && zero != small*page.Size {
			t.Errorf("%d bytes of zeros booked, want %d", zero, small*page.Size)
		}
	}
}
