package pager

import (
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// probeAddr is the last page that a process could have, of which the
	// kernel leaves one unmapped: nothing is ever there.
	probeAddr = 0x7fffffffe000
	// laterPause is how long faults wait that memory was short for.
	laterPause = 2 * time.Millisecond
	// requeuePause is how long the background leaves frames alone that it
	// could not finish.
	requeuePause = 100 * time.Millisecond
	// shieldedPause is how long, where shared memory is below guards.
	shieldedPause = 5 * time.Second
)

// readable reports whether a read of fd would find something.
func readable(fd int) bool {
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	return pollNow(fds[:])
}

// rest sleeps until something happens.
func (r *reader) rest() error {
	spaces := *r.spaces.Load()
	fds := make([]unix.PollFd, 0, len(spaces)+2)
	fds = append(fds, unix.PollFd{Fd: int32(r.kickFD), Events: unix.POLLIN})
	for _, s := range spaces {
		fd := int32(s.u.Fd())
		if s.crowded.Load() {
			fd = -1 // there is something to be read all the time
		}
		fds = append(fds, unix.PollFd{Fd: fd, Events: unix.POLLIN})
	}
	if r.target.PidFD >= 0 && !r.pidGone {
		fds = append(fds, unix.PollFd{Fd: int32(r.target.PidFD), Events: unix.POLLIN})
	}
	timeout := tick
	switch {
	case len(r.parked) > 0:
		timeout = time.Duration(streamParkTime)
	case r.crowded:
		timeout = crowdedPause
	case len(r.later) > 0:
		timeout = laterPause
	case slices.ContainsFunc(spaces, func(s *space) bool { return s.unsettled() }):
		timeout = earlyLook
	}
	r.parking.Store(len(r.parked) > 0)
	r.resting.Store(true)
	defer func() {
		r.parking.Store(false)
		r.resting.Store(false)
	}()
	if len(r.offers) > 0 {
		return nil
	}
	if r.aside.Load() > 0 { // loaded after resting was stored
		if !r.giveWay() {
			r.rouse()
		}
		timeout = min(timeout, time.Duration(demandRecent))
	}
	r.watch.begin()
	began := r.now()
	n, err := unix.Poll(fds, int(timeout.Milliseconds()))
	r.watch.did("sleep")
	r.turns.slept(began, r.now())
	if err != nil && !errors.Is(err, unix.EINTR) {
		return err
	}
	if fds[0].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(r.kickFD, count[:])
	}
	gone := len(fds) > len(spaces)+1 && fds[len(fds)-1].Revents != 0
	r.pidGone = r.pidGone || gone
	// Where something is always to be done, too: whoever has ended still has a descriptor here.
	if now := r.now(); gone || n == 0 && timeout == tick || now-r.probed > int64(tick) {
		r.probed = now
		r.probe()
	}
	r.queue = append(r.queue, r.later...)
	r.later = r.later[:0]
	return nil
}

// probe looks which processes are gone: nothing else tells of an exec, or of
// the end of a forked child.
func (r *reader) probe() {
	for _, s := range *r.spaces.Load() {
		if hasEnded(s.u) {
			s.ended.Store(true)
		}
	}
	r.kicks.Add(1)
}

// finished reports whether there is a space that misses nothing, and no more are
// to come. Whose page was the last one is told by nobody if it was the reader's own.
func (r *reader) finished() bool {
	return !r.gathering.Load() && slices.ContainsFunc(*r.spaces.Load(), func(s *space) bool { return !s.stays && s.complete(r.table) })
}

// review lets go of the spaces that are done, and reports whether none is
// left. What the background could not finish it gets again.
func (r *reader) review() (over bool, err error) {
	for _, s := range *r.spaces.Load() {
		switch {
		case s.ended.Load():
			err = r.release(s, false)
		case s.complete(r.table) && !r.keeps(s):
			err = r.release(s, true)
		default:
			r.poisonOwed(s)
		}
		if err != nil {
			return false, err
		}
	}
	if r.gathering.Load() {
		return false, nil
	}
	if len(*r.spaces.Load()) == 0 {
		return true, nil
	}
	// To look for that takes a millisecond for each GiB that is missing.
	if r.exhausted.Load() && r.busy.Load() == 0 && r.demand.pending() == 0 {
		pause := requeuePause
		if r.shielded.Load() { // in vain, as long as the guard stands
			pause = shieldedPause
		}
		if now := r.now(); now-r.requeue > int64(pause) {
			r.requeue = now
			r.shielded.Store(false)
			r.giveBack()
		}
	}
	return false, nil
}

// giveBack hands frames that nobody works on, but that are not done, to the
// background again.
func (r *reader) giveBack() {
	some := false
	for _, s := range *r.spaces.Load() {
		if s.crowded.Load() {
			continue // in vain, and setCrowded comes back to it
		}
		for n := s.done.nextClear(0, s.done.n); n < s.done.n; {
			frame, end := r.frameOf(n)
			s.order.giveBack(frame)
			some = true
			n = s.done.nextClear(end, s.done.n)
		}
	}
	if some {
		r.wakeBackground()
	}
}

// outlives reports whether no process but that of s lives: what else is in the books only waits to be let go of.
func (r *reader) outlives(s *space) bool {
	for _, o := range *r.spaces.Load() {
		switch {
		case o == s, o.ended.Load():
		case !hasEnded(o.u):
			return false
		default:
			o.ended.Store(true)
			r.kicks.Add(1)
		}
	}
	return true
}

// release lets go of s, whose pages are all resident, or whose process is
// gone: the uffd is closed, which makes all of its memory ordinary memory again. One range after another would
// for a moment part a mapping that has grown in two, which nothing tells, and the process could not mremap it. So only
// where somebody else may have the uffd open that is done before.
func (r *reader) release(s *space, resident bool) error {
	r.watch.begin()
	if !r.gathering.Load() && r.outlives(s) {
		r.last()
	}
	r.gate.shut()
	s.ended.Store(true)
	s.guards.close()
	r.gate.open()
	if err := r.journal.room(r.world); err != nil {
		return err
	}
	r.journal.drop(s.id)
	if _, err := r.world.apply(s.id, event{kind: eventDrop}); err != nil {
		return err
	}
	rest := slices.DeleteFunc(slices.Clone(*r.spaces.Load()), func(o *space) bool { return o == s })
	r.spaces.Store(&rest)
	if resident && slices.ContainsFunc(rest, func(o *space) bool { return !o.away.Empty() }) {
		r.notAwayFrom(s)
	}
	r.queue = slices.DeleteFunc(r.queue[r.head:], func(f fault) bool { return f.s == s })
	r.head = 0
	r.dropRests(s)
	r.rows.forget(s)
	if r.follower.s == s {
		r.follower.forget()
	}
	r.parked = slices.DeleteFunc(r.parked, func(f fault) bool { return f.s == s })
	r.later = slices.DeleteFunc(r.later, func(f fault) bool { return f.s == s })
	if s.taken && resident {
		if err := disown(s.u, s.pid, &s.registered); err != nil {
			r.log.Warn("memory may stay registered", "space", s.id, "error", err)
		}
	}
	if s.taken && len(rest) == 0 {
		// The state still says which userfaultfd was let go of last, for one who goes on if this is killed
		// before it is closed. Its number may then be another's, so from here on it says nothing.
		if err := r.journal.compact(r.world); err != nil {
			r.log.Warn("the state cannot be written anew", "error", err)
		}
	}
	err := s.u.Close()
	r.watch.did("let go")
	r.log.Debug("let go", "space", s.id, "resident", resident)
	r.released(s, resident)
	return err
}
