package lazyrestore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/native"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/pageserver/client"
)

// owed is what a process that is checkpointed is still owed by the pager of
// its own restore: pages that are missing from its memory and not zero.
type owed struct {
	pid      int
	src      image.Source // nil where nothing is owed
	im       *image.Image
	ix       *image.Index
	frames   *image.FrameReader
	frame    int // whose plain data is in plain
	plain    []byte
	mappings []page.Mapping
	parts    []native.Part
	unknown  []string
	killed   bool // the pager: it does not say what is missing
}

// owedPages asks for a pager and opens the image that it serves from, so that
// both are at hand when the process stands still.
func owedPages(ctx context.Context, pid int, opts *CheckpointOptions) (*owed, error) {
	o := &owed{pid: pid, frame: -1}
	reply, err := askPager(ctx, pid, askStatus)
	if o.killed = errors.Is(err, errPagerKilled); o.killed || errors.Is(err, errNoPager) {
		return o, nil
	}
	if err != nil {
		return nil, err
	}
	if o.src, err = openSource(ctx, reply.Image, opts.Source, client.Options{Digest: reply.Digest, Logger: opts.Logger}); err != nil {
		return nil, fmt.Errorf("process %d is still being restored: %w", pid, err)
	}
	o.im, err = image.Open(ctx, o.src, image.OpenOptions{Digest: reply.Digest})
	if err == nil {
		o.ix, err = o.im.LoadIndex(ctx)
	}
	if err != nil {
		o.close()
		return nil, fmt.Errorf("process %d is still being restored: %w", pid, err)
	}
	o.frames = o.im.NewFrameReader(o.ix)
	return o, nil
}

// abandonedPatience is how long a process may take to stop whose pager was killed.
const abandonedPatience = 2 * time.Second

// freeze stops the process. A thread that waits in the kernel for memory which
// nobody brings cannot be stopped; where that is known it is not tried, for some of them
// would wait without sleep from then on.
func (o *owed) freeze(ctx context.Context) (*native.Frozen, error) {
	if o.killed && native.Unstoppable(o.pid) {
		if err := native.Abandoned(o.pid, true); err != nil {
			return nil, err
		}
	}
	patience := time.Duration(0)
	if o.killed {
		patience = abandonedPatience
	}
	frozen, err := native.Freeze(ctx, o.pid, patience)
	var stuck *proc.StuckError
	if errors.As(err, &stuck) {
		_, told := askPager(ctx, o.pid, askStatus)
		if killed := errors.Is(told, errPagerKilled); killed || errors.Is(told, errNoPager) {
			err = cmp.Or(native.Abandoned(o.pid, killed), err)
		}
	}
	return frozen, err
}

// refresh asks what is missing now, when the process no longer runs.
func (o *owed) refresh(ctx context.Context) error {
	if o.src == nil {
		return nil
	}
	reply, err := askPager(ctx, o.pid, askMissing)
	if o.killed = errors.Is(err, errPagerKilled); o.killed || errors.Is(err, errNoPager) {
		return nil // else it has brought everything and left
	}
	if err != nil {
		return err
	}
	o.mappings, o.parts, o.unknown = reply.mappings(), reply.parts(), reply.Unknown
	return nil
}

func (o *owed) close() {
	if o.frames != nil {
		o.frames.Close()
	}
	if o.src != nil {
		o.src.Close()
	}
}

// reader is o for the dump; nil where nothing is owed.
func (o *owed) reader() native.PageReader {
	if len(o.mappings)+len(o.parts) == 0 {
		return nil
	}
	return o
}

// ReadPages fills p with the pages of the image from address at on; pages that
// it does not have are zero. Not safe for concurrent use.
func (o *owed) ReadPages(ctx context.Context, at page.Addr, p []byte) error {
	for len(p) > 0 {
		n, err := o.readRun(ctx, at, p)
		if err != nil {
			return err
		}
		at, p = at+page.Addr(n), p[n:]
	}
	return nil
}

// readRun fills the beginning of p: as much as is in one run, or the one page
// that is in none.
func (o *owed) readRun(ctx context.Context, at page.Addr, p []byte) (int, error) {
	run, ok := o.ix.Lookup(at)
	if !ok || run.Kind != image.Stored {
		clear(p[:page.Size])
		return page.Size, nil
	}
	if o.frame != int(run.Frame) {
		plain, err := o.frames.Read(ctx, int(run.Frame), image.Background)
		if err != nil {
			o.frame = -1
			return 0, err
		}
		o.plain, o.frame = plain, int(run.Frame)
	}
	from := uint64(run.Offset)<<page.Shift + uint64(at-run.Page)
	end := uint64(run.Offset+run.Pages) << page.Shift
	return copy(p, o.plain[from:end]), nil
}
