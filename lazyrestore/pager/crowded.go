package pager

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// A forked child's userfaultfd comes with the event that tells of the fork. Where there
// is no descriptor left for it the event is not read, stays with the kernel, and the
// fork waits: the space is crowded. So do all threads of that process that touch missing
// memory, for the kernel lets nothing be copied as long as it has a change to tell. All
// others are served, the background goes on with them, and so those that are done or
// gone give their descriptors back. It is the same where there is no descriptor to look
// who raised an event, before it is read.

const (
	// crowdedPause is between two tries to read what there is no room for.
	crowdedPause = 2 * time.Millisecond
	// crowdedLook is between two looks who is gone meanwhile.
	crowdedLook = int64(20 * time.Millisecond)
	// crowdedSay is how often the log says that there is none.
	crowdedSay = int64(time.Minute)
)

// errCrowded is of a space that nothing can be installed into before there are
// descriptors. It stays wanted.
var errCrowded = errors.New("an event waits for a descriptor")

// unread makes of a read of s that failed an error, nil where there was nothing to
// be read, or no room for it.
func (r *reader) unread(s *space, err error) error {
	switch {
	case errors.Is(err, unix.EAGAIN):
		r.setCrowded(s, false)
		return nil
	case noRoom(err):
		r.crowd(s, "the userfaultfd of a forked child", err)
		return nil
	}
	return fmt.Errorf("read the events of process %d: %w", s.pid, err)
}

// noRoom reports whether err is for want of a descriptor.
func noRoom(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM)
}

// crowd notes that s is crowded, and now and then says for want of what.
func (r *reader) crowd(s *space, what string, err error) {
	r.setCrowded(s, true)
	if now := r.now(); r.crowdedSaid == 0 || now-r.crowdedSaid > crowdedSay {
		r.crowdedSaid = now
		r.log.Error("an event waits: there is no descriptor left", "for", what, "pid", s.pid, "error", err)
	}
}

// setCrowded notes whether s is. What was left of it meanwhile the background gets
// by the review for which this asks.
func (r *reader) setCrowded(s *space, is bool) {
	if s.crowded.Load() != is {
		s.crowded.Store(is)
		r.kicks.Add(1)
	}
}

// thinOut looks now and then who is gone, which ends the crowding: the reader does not
// look for that when something else is to be done, and now there always is.
func (r *reader) thinOut() {
	if now := r.now(); now-r.crowdedLook > crowdedLook {
		r.crowdedLook = now
		r.probe()
	}
}

// unlessCrowded is do, an install into s or poison, but it is not to be tried again as long as
// s is crowded.
func unlessCrowded(s *space, do func(i, j int) (outcome, error)) func(i, j int) (outcome, error) {
	return func(i, j int) (outcome, error) {
		out, err := do(i, j)
		if out == again && s.crowded.Load() {
			return broken, errCrowded
		}
		return out, err
	}
}
