package pager

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// A forked child's userfaultfd comes with the event that tells of the fork. Where there
// is no descriptor left for it the event is not read, stays with the kernel, and the
// fork waits. So do all threads of that process that touch missing memory, for the
// kernel lets nothing be copied as long as it has a change to tell. Others are served.

const (
	// crowdedPause is between two tries to read what there is no room for.
	crowdedPause = 2 * time.Millisecond
	// crowdedSay is how often the log says that there is none.
	crowdedSay = int64(time.Minute)
)

// unread makes of a read of s that failed an error, nil where there was nothing to
// be read, or no room for it.
func (r *reader) unread(s *space, err error) error {
	switch {
	case errors.Is(err, unix.EAGAIN):
		return nil
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
		r.crowded = true
		if now := r.now(); r.crowdedSaid == 0 || now-r.crowdedSaid > crowdedSay {
			r.crowdedSaid = now
			r.log.Error("a fork waits: there is no descriptor for the child's userfaultfd", "pid", s.pid, "error", err)
		}
		return nil
	}
	return fmt.Errorf("read the events of process %d: %w", s.pid, err)
}

// pauseCrowded waits a moment if there was no room: the next read would be as vain,
// and there is something to be read all the time.
func (r *reader) pauseCrowded() {
	if r.crowded {
		r.crowded = false
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(r.kickFD), Events: unix.POLLIN}}, int(crowdedPause.Milliseconds()))
	}
}
