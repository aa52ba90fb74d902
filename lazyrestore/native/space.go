package native

import (
	"fmt"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A process may be rebuilt in a pid namespace of its own, its space, so that its
// old id need not be free here. Each of its tasks has two ids then. The one of
// the image is what the process knows: all that it does to itself is by
// State.PID and Thread.TID. The other is what we know: all that is done to it
// from outside, by ptrace or /proc, is by builder.pid and builder.tids.

// SpaceError says that a process could not be given a pid namespace with a
// /proc of its own.
type SpaceError struct{ Err error }

func (e *SpaceError) Error() string { return e.Err.Error() }

// Unwrap gives what the kernel said.
func (e *SpaceError) Unwrap() error { return e.Err }

// spaceBeside makes the space while other things are done. The function that it
// gives waits for it; it gives nil where none is wanted.
func (r *reopener) spaceBeside() (wait func() (*proc.PIDNamespace, error)) {
	if !r.opts.PIDNamespace {
		return func() (*proc.PIDNamespace, error) { return nil, nil }
	}
	var space *proc.PIDNamespace
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		row := r.opts.Trace.Row(traceCommand, "space")
		defer r.opts.Trace.Begin(row, "make a pid namespace")()
		if space, err = proc.NewPIDNamespace(); err != nil {
			err = &SpaceError{err}
		}
	}()
	return func() (*proc.PIDNamespace, error) {
		<-done
		return space, err
	}
}

// notBuilt gives up what was made for a process that there will not be.
func (r *reopener) notBuilt(space func() (*proc.PIDNamespace, error)) {
	r.unmake()
	if s, err := space(); err == nil && s != nil {
		_ = s.End() // the error that led here says more
	}
}

// fitsSpace refuses what a space has no place for: its first process is ours.
func (r *reopener) fitsSpace() {
	for i := range r.st.Threads {
		if r.opts.PIDNamespace && r.st.Threads[i].TID == 1 {
			r.refused.add("process id 1", "in a pid namespace of its own another process has it",
				"restore it where the id is free: as the first process of a container, without --pid-ns")
		}
	}
}

// findThreads finds what we call the threads of the process, all of which are
// there.
func (b *builder) findThreads() error {
	b.tids = make([]int, len(b.st.Threads))
	b.tids[0] = b.pid
	var ids map[int]int
	if b.re.opts.PIDNamespace && len(b.tids) > 1 {
		var err error
		if ids, err = proc.ReadTaskIDs(b.pid); err != nil {
			return fmt.Errorf("find the new threads: %w", err)
		}
	}
	for i := range b.tids[1:] {
		tid := b.st.Threads[i+1].TID
		if ids != nil {
			if tid = ids[tid]; tid == 0 {
				return fmt.Errorf("thread %d is not among the new threads", b.st.Threads[i+1].TID)
			}
		}
		b.tids[i+1] = tid
	}
	return nil
}
