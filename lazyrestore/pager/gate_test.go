package pager

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A reader that waits for who is inside sleeps: it may have the processor of whom it waits for.
func TestReaderSleepsAtTheGate(t *testing.T) {
	const stay = 100 * time.Millisecond
	var g gate
	g.enter()
	var left atomic.Bool
	go func() {
		for !g.isWanted() {
			runtime.Gosched()
		}
		time.Sleep(stay)
		left.Store(true)
		g.leave()
	}()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began, used := time.Now(), threadTime(t)
	g.shut()
	waited, used := time.Since(began), threadTime(t)-used
	if !left.Load() {
		t.Errorf("shut after %v with somebody inside", waited)
	}
	if used > waited/4 {
		t.Errorf("of %v that it waited the reader ran for %v", waited, used)
	}
	if g.isWanted() {
		t.Error("the reader still waits")
	}
	g.open()
	g.enter()
	g.leave()
}

// The last one who leaves wakes the reader.
func TestLeavingWakesTheReader(t *testing.T) {
	var g gate
	best := time.Hour
	for range 20 {
		g.enter()
		g.enter()
		var left time.Time
		go func() {
			for !g.isWanted() {
				runtime.Gosched()
			}
			g.leave()
			time.Sleep(gatePatience / 4)
			left = time.Now()
			g.leave()
		}()
		g.shut()
		best = min(best, time.Since(left))
		g.open()
	}
	if best > gatePatience/2 {
		t.Errorf("shut %v after the last one left, at best", best)
	}
}

// Where Go runs one goroutine at a time, who waits at the gate lets the reader run.
func TestWaitingLetsTheReaderRun(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	g := gate{alone: true}
	var waits []time.Duration
	for range 21 {
		g.shut()
		go g.open()
		began := time.Now()
		g.enter()
		waits = append(waits, time.Since(began))
		g.leave()
	}
	slices.Sort(waits)
	// Most are: some have to give the processor to others.
	if most := waits[len(waits)/4]; most > 2*gatePause {
		t.Errorf("it was let in after %v", most)
	}
}

// threadTime is how long the calling thread has run.
func threadTime(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// Nobody is inside while it is shut, however copiers come and go.
func TestGateKeepsApart(t *testing.T) {
	var g gate
	var inside atomic.Int32
	var over atomic.Bool
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for !over.Load() {
				g.enter()
				inside.Add(1)
				for range 100 {
					if g.isWanted() {
						break
					}
				}
				inside.Add(-1)
				g.leave()
			}
		})
	}
	for i := range 2000 {
		if i%2 == 0 && !g.tryShut() || i%2 == 1 {
			g.shut()
		}
		for range 10 {
			if n := inside.Load(); n != 0 {
				t.Errorf("%d inside while it is shut", n)
			}
		}
		g.open()
	}
	over.Store(true)
	wg.Wait()
}

// Who is inside goes out between one copy and the next if the reader waits, and comes back for
// the rest.
func TestInstallLetsTheReaderIn(t *testing.T) {
	const pages = 4 * oneCopy / page.Size
	se := fakeSession(t, pages, plainSource)
	se.lastFault.Store(-demandRecent) // so pieces are large
	put, read := 0, 0
	m := &fakeMemory{vmas: []page.Range{page.RangeOf(testBase, pages*page.Size)}, pages: map[page.Addr]byte{}}
	m.refuse = func() error {
		if put++; put == 1 { // amid the first copy
			readerComes(se, m, &read)
		}
		return nil
	}
	s := fakeSpace(t, se, m)
	w := se.newWorker("background")
	defer w.close()
	plain, err := w.frames.ReadSpan(t.Context(), 0, pages/4, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.installFrames(t.Context(), s, plain, 0, pages/4); err != nil {
		t.Fatal(err)
	}
	if want := oneCopy / page.Size; read != want {
		t.Errorf("%d pages were there when the reader was let in, not %d", read, want)
	}
	if left := s.left.Load(); left != 0 {
		t.Errorf("%d pages are missing", left)
	}
}

// readerComes has a reader want to get in, and tells how many pages are in m when it is.
func readerComes(se *session, m *fakeMemory, read *int) {
	se.gate.closed.Store(true)
	se.gate.wanted.Store(1)
	go func() {
		for se.gate.inside.Load() != 0 {
			runtime.Gosched()
		}
		m.mu.Lock()
		*read = len(m.pages)
		m.mu.Unlock()
		se.gate.wanted.Store(0)
		se.gate.open()
	}()
}

// So does who brings what is away. What is not away any more it leaves alone.
func TestBringingLetsTheReaderIn(t *testing.T) {
	const pages = 4 * oneCopy / page.Size
	se := fakeSession(t, pages, plainSource)
	se.lastFault.Store(-demandRecent) // so pieces are large
	put, read := 0, 0
	all := page.RangeOf(testBase, pages*page.Size)
	m := &fakeMemory{vmas: []page.Range{all}, pages: map[page.Addr]byte{}}
	m.refuse = func() error {
		if put++; put == 1 {
			readerComes(se, m, &read)
		}
		return nil
	}
	s := fakeSpace(t, se, m)
	s.away.Add(all)
	s.away.Remove(page.RangeOf(testBase+(pages-2)*page.Size, page.Size))
	w := se.newWorker("background")
	defer w.close()
	if out, err := w.copyAway(m, testBase, s, all, make([]byte, all.Len())); out != there {
		t.Fatal(out, err)
	}
	if want := oneCopy / page.Size; read != want {
		t.Errorf("%d pages were there when the reader was let in, not %d", read, want)
	}
	if len(m.pages) != pages-1 || !slices.Equal(slices.Collect(s.bring.came.All()), slices.Collect(s.away.All())) {
		t.Errorf("%d pages came, noted as %v", len(m.pages), slices.Collect(s.bring.came.All()))
	}
}
