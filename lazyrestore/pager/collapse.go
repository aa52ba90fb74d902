package pager

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

const (
	hugeSize = 2 << 20
	// collapseStep is how much one call rebuilds: the kernel takes about half a
	// millisecond a MiB, and ctx is looked at in between.
	collapseStep = 8 << 20
)

// collapse rebuilds the transparent huge pages that were in the ranges before
// the checkpoint, as far as that is possible (MADV_COLLAPSE, Linux 6.1). It is
// for speed alone: what cannot be had is left.
func (se *session) collapse(ctx context.Context, ranges []page.Range) {
	defer se.trace.Begin(se.trace.Row(traceCommand, "huge pages"), "rebuild huge pages")()
	done := uint64(0)
	for _, r := range ranges {
		r.Start = (r.Start + hugeSize - 1) &^ (hugeSize - 1)
		r.End &^= hugeSize - 1
		for ; !r.Empty() && ctx.Err() == nil; r.Start += collapseStep {
			part := r.Intersect(page.RangeOf(r.Start, collapseStep))
			err := processMadvise(se.target.PidFD, part, unix.MADV_COLLAPSE)
			switch {
			case err == nil:
				done += part.Len()
			case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOSYS):
				se.log.Debug("rebuild huge pages", "error", err)
				return
			}
		}
	}
	se.log.Debug("rebuilt huge pages", "bytes", done)
}
