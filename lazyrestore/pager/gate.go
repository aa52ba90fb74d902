package pager

import (
	"runtime"
	"sync/atomic"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
)

// A gate keeps copies and events apart. Copiers go in, check that a page is
// still wanted, copy it and go out; the reader closes the gate, waits until
// nobody is inside, reads events (which lets the process go on) and applies
// them. So no event is read between a check and its copy.
//
// It is made for one reader and for stretches inside of some 10 µs: both sides spin
// first. A reader that still waits then sleeps until the last one goes out: the reader may have
// taken the processor from that, which at a lower priority would not get it back for as long as
// the reader only yields (by ftrace, 260 µs of a first fault).
// Whoever is inside for long asks isWanted between one copy and the next.
type gate struct {
	closed atomic.Bool
	inside atomic.Int32
	wanted atomic.Uint32 // 1 while the reader waits for those inside
	alone  bool          // Go runs one goroutine at a time: who is waited for may wait for that
}

// spins is how often a loop asks again before it gives the processor away:
// some microseconds.
const spins = 400

const (
	// gatePause is how long a copier then sleeps. It does so without a word to Go:
	// a goroutine that is locked to its thread is let go and fetched by other
	// threads, each of which has to be woken, which takes longer.
	gatePause = 20 * time.Microsecond
	// gatePatience is how long the reader sleeps without letting Go run something else: who is
	// inside may be held up by a garbage collection that waits for the reader.
	gatePatience = time.Millisecond
)

// enter waits until the gate is open and goes in. Every enter has a leave.
func (g *gate) enter() {
	for try := 0; ; try++ {
		if !g.closed.Load() {
			g.inside.Add(1)
			if !g.closed.Load() {
				return
			}
			g.leave()
		}
		if try < spins {
			continue
		}
		if g.alone {
			runtime.Gosched() // the reader may be ready to run
			if !g.closed.Load() {
				continue
			}
		}
		nap(gatePause)
	}
}

func (g *gate) leave() {
	if g.inside.Add(-1) == 0 && g.wanted.CompareAndSwap(1, 0) {
		thread.Wake(&g.wanted)
	}
}

// isWanted reports whether the reader waits for those inside.
func (g *gate) isWanted() bool { return g.wanted.Load() != 0 }

// tryShut closes the gate if nobody is inside. Only the reader shuts and opens.
func (g *gate) tryShut() bool {
	g.closed.Store(true)
	if g.inside.Load() == 0 {
		return true
	}
	g.closed.Store(false)
	return false
}

// shut closes the gate and waits until nobody is inside.
func (g *gate) shut() {
	g.closed.Store(true)
	for try := 0; ; try++ {
		g.wanted.Store(1) // before it is looked who is inside: the last one looks the other way round
		if g.inside.Load() == 0 {
			break
		}
		switch {
		case try < spins:
		case g.alone:
			osYield()
			runtime.Gosched()
		default:
			thread.SleepWhile(&g.wanted, 1, gatePatience)
			if g.inside.Load() != 0 {
				runtime.Gosched()
			}
		}
	}
	g.wanted.Store(0)
}

func (g *gate) open() { g.closed.Store(false) }
