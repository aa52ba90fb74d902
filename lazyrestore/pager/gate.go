package pager

import (
	"runtime"
	"sync/atomic"
	"time"
)

// A gate keeps copies and events apart. Copiers go in, check that a page is
// still wanted, copy it and go out; the reader closes the gate, waits until
// nobody is inside, reads events (which lets the process go on) and applies
// them. So no event is read between a check and its copy.
//
// It is made for one reader that must never sleep on a copier, and for
// stretches inside of some 10 µs: both sides spin before they yield.
type gate struct {
	closed atomic.Bool
	inside atomic.Int32
	alone  bool // Go runs one goroutine at a time: whoever is inside may wait for that
}

// spins is how often a loop asks again before it gives the processor away:
// some microseconds.
const spins = 400

// gatePause is how long a copier then sleeps. It does so without a word to Go:
// a goroutine that is locked to its thread is let go and fetched by other
// threads, each of which has to be woken, which takes longer.
const gatePause = 20 * time.Microsecond

// enter waits until the gate is open and goes in. Every enter has a leave.
func (g *gate) enter() {
	for try := 0; ; try++ {
		if !g.closed.Load() {
			g.inside.Add(1)
			if !g.closed.Load() {
				return
			}
			g.inside.Add(-1)
		}
		if try >= spins {
			nap(gatePause)
		}
	}
}

func (g *gate) leave() { g.inside.Add(-1) }

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
	for try := 0; g.inside.Load() != 0; try++ {
		switch {
		case try < spins:
		case g.alone || try%(64*spins) == 0:
			osYield()
			runtime.Gosched()
		default:
			osYield()
		}
	}
}

func (g *gate) open() { g.closed.Store(false) }
