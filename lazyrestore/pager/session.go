package pager

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/trace"
)

// A session is one call of Serve: what the reader, the demand workers and the
// background workers share.
type session struct {
	img   *image.Image
	pages *table
	stats *counters
	retries
	target Target
	lost   *lostErrors

	background bool                          // there are background workers
	last       func()                        // called by the reader before it lets the last process go, and those that have ended
	released   func(s *space, resident bool) // called by the reader when it has let a space go

	gate      gate
	spaces    atomic.Pointer[[]*space] // replaced, never changed; only the reader does
	expected  []*space                 // of the reader: those that have not come yet
	demand    *demand
	lastFault atomic.Int64  // when the last fault was read, in the session's clock
	streaming atomic.Bool   // the latest fault was of a thread that runs through memory
	start     time.Time     // where that clock begins
	kicks     atomic.Uint32 // how often somebody wanted the reader to look
	kicking   sync.Mutex    // held to write to kickFD, and to close it
	kickFD    int           // an eventfd that wakes it; -1 once the session is over
	offers    chan *offer   // spans for the reader to install
	arrivals  chan *arrival // for the reader to serve
	openings  chan *opening // segments of the index for the reader to open
	indexing  sync.Mutex    // held to load one that nobody waits for
	// restWanted gets a token once what nobody needs yet of the index had better
	// be loaded.
	restWanted chan struct{}
	unseen     page.Set      // of the reader: image addresses of shared memory that loseUnseen has given up
	over       chan struct{} // closed when nothing is served any more
	gathering  atomic.Bool   // more may come
	forming    atomic.Bool   // they are still being built: nothing is installed unasked
	resting    atomic.Bool   // the reader sleeps, or is about to
	letGo      atomic.Bool   // the process has been let go
	parking    atomic.Bool   // and faults wait for what the background is fetching
	more       chan struct{} // tells idle background workers of frames to fetch
	aside      atomic.Int32  // background workers that have stepped aside for faults
	calm       chan struct{} // has tokens for them, once none come
	busy       atomic.Int32  // background workers at work
	shielded   atomic.Bool   // shared memory was left missing below a guard
	exhausted  atomic.Bool   // one of them has found nothing to do since they were last woken

	trace     *trace.Recorder // nil unless somebody wants one
	traceSkew time.Duration   // where this clock begins on the recorder's
	threads   threadRows
}

// now is the time since the session began; it costs less than a time.Time.
func (se *session) now() int64 { return int64(time.Since(se.start)) }

// kick has the reader look at what has ended, wherever it is.
func (se *session) kick() {
	se.kicks.Add(1)
	se.nudge()
}

// nudge wakes the reader. When the session is over, as a call from outside may find it, the
// number of the descriptor may be another's.
func (se *session) nudge() {
	one := [8]byte{1}
	se.kicking.Lock()
	defer se.kicking.Unlock()
	if se.kickFD >= 0 {
		_, _ = unix.Write(se.kickFD, one[:])
	}
}

// wakeBackground tells idle workers that there is something to fetch.
func (se *session) wakeBackground() {
	se.exhausted.Store(false)
	for range cap(se.more) {
		select {
		case se.more <- struct{}{}:
		default:
			return
		}
	}
}

// metGuard has the reader note that private memory is guarded, for a successor has to know too.
func (se *session) metGuard(shared bool) {
	if shared {
		se.shielded.Store(true)
	} else {
		se.kick()
	}
}

// close frees what the session holds, once nobody works in it.
func (se *session) close() {
	for _, s := range *se.spaces.Load() {
		s.guards.close()
	}
	se.kicking.Lock()
	defer se.kicking.Unlock()
	_ = unix.Close(se.kickFD)
	se.kickFD = -1
}

// A worker is what a goroutine needs that fetches frames and installs them.
type worker struct {
	*session
	installer
	frames *image.FrameReader
	watch  *stopwatch // nil unless somebody wants to know
	big    []byte     // a huge page being put together; from mmap

	// bigFrames reads for that, since the caller may still have use for what
	// frames has read. nil before the first.
	bigFrames *image.FrameReader
}

// newWorker is one for the goroutine that a trace calls name.
func (se *session) newWorker(name string) *worker {
	w := &worker{
		session:   se,
		installer: installer{table: se.pages, tally: se.stats, readerWaits: se.gate.isWanted, forming: &se.forming, onGuard: se.metGuard},
		watch:     se.newStopwatch(name),
	}
	w.frames = w.newFrames()
	return w
}

// newFrames is a reader of frames whose stages the worker's watch takes.
func (w *worker) newFrames() *image.FrameReader {
	frames := w.img.NewFrameReader(w.pages.Index)
	frames.Decoding = w.watch.hook()
	return frames
}

func (w *worker) close() {
	w.frames.Close()
	if w.big != nil {
		_ = unix.Munmap(w.big)
	}
	if w.bigFrames != nil {
		w.bigFrames.Close()
	}
}

// osYield lets another thread of this machine run (sched_yield(2)).
func osYield() {
	_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
}
