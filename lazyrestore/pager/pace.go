package pager

import (
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// What is done ahead gives way to faults. A thread that touches one missing
// page after another is back some 10 µs after it was woken, and whatever the
// reader does by then makes it wait. So after a fault the reader does nothing
// else for a moment, and while faults keep coming it does little: a program
// that has just been restored wants its working set first. Faults that go on
// for longer are better met by more pages than by short waits.

const (
	// Pieces of a copy, in bytes. While faults come, the next one may have to
	// wait for a piece; else larger ones cost less each.
	smallPiece = 16 << 10
	largePiece = 256 << 10
	// oneCopy is how much is copied before it is asked whether a fault waits for that.
	oneCopy = 64 << 10
	// demandRecent is how long after a fault another one is expected.
	demandRecent = int64(time.Millisecond)
	// lull is how long after a fault the reader waits for the next one.
	lull = int64(30 * time.Microsecond)
	// While faults come without a lull, the reader works ahead for one part in
	// restraint of its time, and for twice as large a part each easing.
	restraint = 16
	easing    = int64(100 * time.Millisecond)
)

// active reports whether faults are coming.
func (se *session) active() bool { return se.now()-se.lastFault.Load() < demandRecent }

// giveWay reports whether what is done ahead gives way to faults: they are
// coming, and not for what is done ahead anyway.
func (se *session) giveWay() bool { return se.active() && !se.streaming.Load() }

// piece is how many pages may be copied without looking for faults.
func (se *session) piece() int {
	if se.giveWay() {
		return smallPiece >> page.Shift
	}
	return largePiece >> page.Shift
}

// A pace says when the reader may work ahead. Times are in the session's clock.
type pace struct {
	lull  int64 // 0 where there is no time to wait for a fault
	since int64 // when the faults began that have been coming since
	last  int64 // when the latest came
	due   int64 // when to work ahead even if they come
}

// fault notes that one has come.
func (p *pace) fault(now int64) {
	if now-p.last > demandRecent {
		p.since, p.due = now, now
	}
	p.last = now
}

// served notes that one has been: who waited for it is back some time after that.
func (p *pace) served(now int64) { p.last = now }

// restraint is how many times as long as it works ahead the reader waits
// afterwards.
func (p *pace) restraint(now int64) int64 { return max(int64(restraint)>>((now-p.since)/easing), 1) }

// besieged reports whether faults have been coming for so long that it is
// pages that count.
func (p *pace) besieged() bool { return p.restraint(p.last) == 1 }

// free reports whether the reader may work ahead.
func (p *pace) free(now int64) bool { return now-p.last >= p.lull || now >= p.due }

// worked notes that it has, from began on.
func (p *pace) worked(began, now int64) { p.due = now + (now-began)*p.restraint(now) }
