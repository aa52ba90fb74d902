package pager

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// OnLost says what becomes of a process whose pages cannot be had.
type OnLost uint8

// The values of OnLost. A page is never left to read as zeros.
const (
	Wait   OnLost = iota // it waits at its missing page until the source gives it
	Kill                 // it is killed
	Poison               // touching such a page raises SIGBUS
)

// String is the value in the words of the command line.
func (o OnLost) String() string {
	switch o {
	case Wait:
	case Kill:
		return "kill"
	case Poison:
		return "poison"
	}
	return "wait"
}

// lose gives up a frame in s, unless s does not want it: err is why it cannot
// be had. What is called off because ctx has ended is not lost, and its error
// is that.
func (w *worker) lose(ctx context.Context, s *space, frame int, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	from, to := w.frameNumbers(frame)
	w.gate.enter() // what has been read has its effect by then
	wanted := !s.ended.Load() && s.done.nextClear(from, to) < to
	w.gate.leave()
	if !wanted {
		return nil
	}
	if s.crowded.Load() {
		return errCrowded // it is told when it can be done
	}
	if killed, kerr := w.killFor(s, err); killed {
		return kerr
	}
	w.lost.add(err)
	w.log.Error("pages are lost and poisoned: touching them raises SIGBUS", "frame", frame, "error", err)
	var huge []page.Addr
	perr := w.put(ctx, s, from, to, unlessCrowded(s, func(i, j int) (outcome, error) {
		out, err := w.poison(s, i, j)
		huge = append(huge, w.huge...)
		return out, err
	}))
	for _, at := range huge {
		if perr == nil {
			perr = w.installHuge(ctx, s, at, image.Background)
		}
	}
	return perr
}

// killFor kills the process of s for a loss, where that is asked for. It reports
// whether that was done, or is not needed: an exec has ended the memory that
// something was lost of, and nobody has seen that yet. A forked child has no
// pid that we know, so that it is never killed.
func (w *worker) killFor(s *space, err error) (done bool, killErr error) {
	if w.onLost != Kill || s.id != 0 || w.target.PidFD < 0 {
		return false, nil
	}
	w.gate.enter()
	over := s.ended.Load() || hasEnded(s.u)
	w.gate.leave()
	if over {
		return true, nil
	}
	w.lost.add(err)
	w.log.Error("pages are lost, and the process is killed", "pid", w.target.Pid, "error", err)
	return true, unix.PidfdSendSignal(w.target.PidFD, unix.SIGKILL, nil, 0)
}

// poisonAt poisons the page of a fault. It reports whether it did: if not, the page may be there.
func (r *reader) poisonAt(f fault) (v verdict, did bool) {
	n, err := f.s.mem.Poison(uint64(f.addr), page.Size, 0)
	r.stats.poisoned.Add(uint64(max(n, 0)))
	switch out := outcomeOf(err); out {
	case there:
		return settled, true
	case present, gone:
		_ = f.s.mem.Wake(uint64(f.addr), page.Size)
		return settled, false
	default:
		return r.judge(f.s, out, err), false
	}
}

// An outage is a time in which the source gives nothing. All who fetch share
// it, so that it is told of once and not by each.
type outage struct {
	down atomic.Bool // reads fail; looked at without mu

	mu    sync.Mutex
	since time.Time     // guarded by mu: when the first read failed
	told  time.Time     // guarded by mu: when the log last said so
	pause time.Duration // guarded by mu: until it says so again
}

const (
	firstNotice = time.Second
	lastNotice  = time.Minute
)

// failed notes a read that failed, and now and then says in the log since when
// nothing comes, and why. The error names the servers.
func (o *outage) failed(log *slog.Logger, err error) {
	o.mu.Lock()
	now := time.Now()
	if !o.down.Load() {
		o.since, o.told, o.pause = now, now, firstNotice
		o.down.Store(true)
	}
	tell := now.Sub(o.told) >= o.pause
	if tell {
		o.told, o.pause = now, min(2*o.pause, lastNotice)
	}
	waited := now.Sub(o.since)
	o.mu.Unlock()
	if tell {
		log.Warn("pages cannot be had, and whoever touches them waits", "for", waited.Round(time.Second), "error", err)
	}
}

// over notes that a read has succeeded.
func (o *outage) over(log *slog.Logger) {
	if !o.down.Load() {
		return
	}
	o.mu.Lock()
	was := o.down.Swap(false)
	lasted := time.Since(o.since)
	o.mu.Unlock()
	if was && lasted >= firstNotice {
		log.Warn("pages come again", "after", lasted.Round(time.Millisecond))
	}
}

// lasts is for how long nothing has come; 0 where all is well.
func (o *outage) lasts() time.Duration {
	if !o.down.Load() {
		return 0
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return time.Since(o.since)
}

// A LostError lists why pages could not be had: they are poisoned, or the
// process was killed (Options.OnLost).
type LostError struct {
	Errs  []error // the first few
	Total int     // how many there were
}

// Error gives the number and the first reason.
func (e *LostError) Error() string {
	return fmt.Sprintf("pager: %d chunks are lost, and nobody gets to see their pages: %v", e.Total, e.Errs[0])
}

// Unwrap gives the reasons.
func (e *LostError) Unwrap() []error { return e.Errs }

// lostErrors collects what becomes a LostError.
type lostErrors struct {
	first chan struct{} // closed by the first
	mu    sync.Mutex
	errs  []error // guarded by mu
	total int     // guarded by mu
}

// keptErrors bounds LostError.Errs.
const keptErrors = 16

func (l *lostErrors) add(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total++; len(l.errs) < keptErrors {
		l.errs = append(l.errs, err)
	}
	if l.total == 1 {
		close(l.first)
	}
}

func (l *lostErrors) err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total == 0 {
		return nil
	}
	return &LostError{slices.Clone(l.errs), l.total}
}
