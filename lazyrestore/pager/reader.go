package pager

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
	"github.com/lazyrestore/lazyrestore/uffd"
)

const (
	// spinTime is how long the reader asks again before it sleeps. Waking a
	// sleeping thread is most of what a fault costs (52-65 µs against 15).
	spinTime = int64(100 * time.Microsecond)
	// tick is how often a sleeping reader looks for processes that are gone,
	// which no event tells.
	tick = time.Second
	// parkTime is how long a fault waits for the background, which is fetching
	// its frame, before the reader does that too: about as long as it takes.
	// In a stream spans are larger, and all of them are waited for.
	parkTime       = int64(50 * time.Microsecond)
	streamParkTime = int64(time.Millisecond)
)

// A reader is the one thread that reads the events of all spaces. It serves
// what it can serve without waiting, and waits for nobody.
type reader struct {
	worker
	ctx       context.Context
	world     *world
	journal   *journal
	queue     []fault // not served yet, from head on
	head      int
	held      []*offer // spans that the background has decoded
	rests     []rest
	latest    int  // of rests
	dear      bool // what they hold has come over a network
	restTurn  bool
	parked    []fault // on frames that the background is fetching
	later     []fault // those that memory was short for, or descriptors
	requeue   int64   // when unfinished frames were last given back
	zeros     []byte  // maxZero bytes
	spare     []byte  // memory for a segment of the index that was not at hand
	loaded    int     // segments of the index, for faults
	rows      rows
	pidGone   bool   // the target's pidfd has said so
	seen      uint32 // kicks looked at
	pace      pace
	follower  follower
	patience  patience
	elders    elders
	turns     turns
	zapped    zapped
	stretches []stretch     // that were looked at since anything has changed
	standing  []unix.PollFd // for standBack

	probed int64 // when it was looked who is gone, but for crowding

	crowded     bool  // some space is
	crowdedSaid int64 // when the log said so
	crowdedLook int64 // when it was looked who is gone
}

// run serves until no space is left, or ctx is done.
func (r *reader) run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r.turns.begin() // somebody waits for each thing that it does
	defer r.turns.end()
	spin := spinsFor()
	r.pace = pace{lull: min(lull, spin), last: -demandRecent}
	active := r.now()
	for {
		n, err := r.readAll()
		if err != nil {
			return err
		}
		if len(r.openings) > 0 {
			r.openAll()
		}
		switch {
		case r.head < len(r.queue):
			r.serve()
			active = r.now()
			r.pace.served(active)
			r.turns.served(active)
			continue
		case n > 0:
			active = r.now()
			continue
		}
		if k := r.kicks.Load(); k != r.seen || r.finished() {
			r.seen = k
			r.welcome()
			if r.ctx.Err() != nil {
				return r.ctx.Err()
			}
			if over, err := r.review(); over || err != nil {
				return err
			}
			continue
		}
		if active, err = r.meanwhile(active, spin); err != nil {
			return err
		}
	}
}

// meanwhile is for when no event is there: the reader works ahead, looks again, or sleeps. There was
// something to do last at active, and what it returns is that from now on.
func (r *reader) meanwhile(active, spin int64) (int64, error) {
	if r.giveWay() && r.turns.give() {
		return active, nil
	}
	if (r.session.forming.Load() || !r.letGo.Load()) && len(r.parked) == 0 {
		// Whoever builds the process has better use for the processor: nothing
		// is done ahead, and nothing waited for but asleep.
		if spin > 0 && r.almostBuilt() {
			thread.Yield()
			r.turns.breathe(r.now())
			return active, nil
		}
		return active, r.rest()
	}
	now := r.now()
	if now < r.pace.due && r.isWaitedFor(now) {
		r.standBack(now)
		return active, nil
	}
	if worked := r.assist(); worked || len(r.parked) > 0 {
		active = r.now()
		r.turns.breathe(active)
		if r.unpark(active) || worked || !r.streaming.Load() {
			return active, nil
		}
	} else if now-active < spin && !r.streaming.Load() && !r.isWaitedFor(now) {
		return active, nil
	}
	err := r.rest()
	return r.now(), err
}

// spinsFor is for how long the reader looks for the next event before it sleeps.
func spinsFor() int64 {
	if runtime.GOMAXPROCS(0) == 1 || runtime.NumCPU() == 1 {
		return 0 // the processor is the application's
	}
	return spinTime
}

// readAll reads what has happened in every space, and returns how much.
func (r *reader) readAll() (int, error) {
	total, crowded := 0, false
	for _, s := range *r.spaces.Load() {
		n, err := r.read(s)
		if err != nil {
			return total, err
		}
		total += n
		crowded = crowded || s.crowded.Load()
	}
	if r.crowded = crowded; crowded {
		r.thinOut()
	}
	return total, nil
}

// read reads one batch of messages of s: into the journal, since reading is
// what lets the process go on. It shuts the gate for that.
func (r *reader) read(s *space) (int, error) {
	if !r.gate.tryShut() {
		if !readable(s.u.Fd()) {
			return 0, nil
		}
		r.gate.shut()
	}
	defer r.gate.open()
	if s.guards.some.Load() {
		if err := r.forgetGuarded(s); err != nil {
			return 0, err
		}
	}
	if err := r.waitForEarly(s); err != nil {
		return 0, err
	}
	if err := r.journal.room(r.world); err != nil {
		return 0, err
	}
	if s.crowded.Load() && !readable(s.u.Fd()) {
		r.setCrowded(s, false)
	}
	slots, seen := r.slots(s)
	if len(slots) == 0 {
		return 0, nil
	}
	take := s.u.Read
	if s.moving { // what is told after a move is not to be read with it
		take = byOne(take)
	}
	n, err := take(slots)
	if err != nil {
		return 0, r.unread(s, err)
	}
	now := r.now()
	logged := 0
	for i := range slots[:n] {
		if slots[i].Event() == uffd.EventPagefault {
			r.faulted(s, slots[i].Fault(), now)
			continue
		}
		logged = i + 1
		if err := r.changed(s, &slots[i], seen); err != nil {
			return n, err
		}
	}
	r.journal.keep(logged)
	if logged > 0 {
		r.setCrowded(s, false)
	}
	if len(s.fresh) > 0 {
		return n, r.lookAround(s)
	}
	return n, nil
}

// slots is where to read the next messages of s to; none: nothing is to be
// read now. A space with shared memory gets one at a time, after a look at who
// is about to drop some, as long as some of it is missing, or may be where it grows to: of what is there none is missing
// after a drop, and after a removal it is zero, so there all may be taken for removed. What comes after the look must not be read with it,
// so nothing is read where there was nothing to look for. A fault that waits is
// read before any event: then there is no need to look, unless it stops waiting
// by a signal, which judge finds.
func (r *reader) slots(s *space) ([]uffd.Msg, seenCalls) {
	if !s.sharesAny() || s.sharedHere && !s.mayLoseShared() {
		return r.journal.slots(s.id, nil), seenCalls{}
	}
	if !readable(s.u.Fd()) {
		return nil, seenCalls{}
	}
	if !s.missesShared(r.table) && !s.mayLoseShared() {
		return r.journal.slots(s.id, nil), seenCalls{}
	}
	seen := seenCalls{looked: true}
	changing := func() bool { return isChanging(s.u) }
	faults, err := faultsPending(s.u.Fd())
	if err != nil {
		faults = !changing()
	}
	if !faults {
		if !changing() {
			return nil, seen // it was a fault, that came or went in between
		}
		var ok bool
		if seen, ok = r.lookBefore(s, changing); !ok {
			return nil, seen
		}
	}
	kept := slices.Collect(seen.kept.All())
	for len(kept) > maxKeptCalls { // a successor would not know of them
		seen.kept.Remove(kept[len(kept)-1])
		kept = kept[:len(kept)-1]
	}
	return r.journal.slots(s.id, kept)[:1], seen
}

func (r *reader) faulted(s *space, f uffd.Fault, now int64) {
	r.stats.faults.Add(1)
	r.lastFault.Store(now)
	r.pace.fault(now)
	r.queue = append(r.queue, fault{s: s, addr: page.Addr(f.Addr).Down(), write: f.Flags&uffd.FaultWrite != 0, tid: f.TID, at: now})
}

// changed applies an event to the world. The gate is shut.
func (r *reader) changed(s *space, m *uffd.Msg, seen seenCalls) error {
	e, err := parseSlot(slotOf(m))
	if err != nil {
		return fmt.Errorf("event of process %d: %w", s.pid, err)
	}
	owes := func(from page.Range) bool { return s.owesShared(r.table, from) }
	if err := seen.judge(&e); err != nil && slices.ContainsFunc(s.origins(e.from), owes) {
		r.loseUnseen(s, e.from, err)
		return nil
	} // what is there, or was never stored, the kernel knows, whichever it was
	if e.kind == eventRemove && !e.kept {
		_, parts := s.wholePages(e.from)
		for _, part := range parts {
			if owes(part) {
				r.loseUnseen(s, part, fmt.Errorf("%v: %w", part, errPartRemoved))
			}
		}
		r.removeGrown(s, e.from)
	}
	return r.change(s, e)
}

// change applies an event to the world, and to the books. The gate is shut.
func (r *reader) change(s *space, e event) error {
	child, err := r.world.apply(s.id, e)
	if err != nil {
		return err
	}
	if child != nil {
		return r.adopt(s, child)
	}
	for _, s := range *r.spaces.Load() {
		s.settleGone(r.table, &r.world.removed)
	}
	r.stretches = r.stretches[:0]
	return nil
}

// adopt begins to serve a forked child, whose missing pages are those of its
// parent at the fork.
func (r *reader) adopt(parent *space, m *model) error {
	if err := unix.SetNonblock(m.fd, true); err != nil {
		return fmt.Errorf("userfaultfd of a forked child: %w", err)
	}
	u := uffd.FromFD(m.fd)
	child := newSpace(r.table, m, u, u, parent)
	all := append(append([]*space(nil), *r.spaces.Load()...), child)
	r.spaces.Store(&all)
	r.log.Debug("serving a forked child", "space", m.id, "missing", child.missingBytes(r.table))
	r.wakeBackground()
	r.kicks.Add(1)
	return nil
}
