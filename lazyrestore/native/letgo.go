package native

import (
	"context"
	"slices"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
)

// letGoTime is how long a userfaultfd may be open somewhere whose pager has left.
const letGoTime = 500 * time.Millisecond

// awaitLetGo waits until no memory of the process is registered, if that may come to be
// soon: what was forked while its pager had the userfaultfd open has that too until it
// execs.
func (f *Frozen) awaitLetGo(ctx context.Context, owed *Owed) error {
	if !f.mayBeLetGo(owed) {
		return nil
	}
	end := time.Now().Add(letGoTime)
	for last := false; !last; {
		thread.Sleep(time.Millisecond)
		if err := context.Cause(ctx); err != nil {
			return err
		}
		last = time.Now().After(end)
		now := capture{pid: f.pid}
		if err := now.readSmaps(); err != nil {
			return err
		}
		if !now.registeredMemory() {
			return f.fromProc()
		}
	}
	return nil
}

// mayBeLetGo reports whether memory is registered with a userfaultfd that may be a pager's
// which has left: it was not killed, nothing is missing, and the process, which
// stands still, does not hold one itself.
func (f *Frozen) mayBeLetGo(owed *Owed) bool {
	return f.c.registered && owed.nothing() && !owed.Killed &&
		!slices.ContainsFunc(f.c.fds.list, func(d descriptor) bool { return d.link == "anon_inode:[userfaultfd]" })
}
