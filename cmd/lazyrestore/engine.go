package main

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

// A process is what a restore gives: a program that runs and a pager beside it.
type process interface {
	PID() int
	Result() lazyrestore.RestoreResult
	Signal(unix.Signal) error
	Wait() (unix.WaitStatus, error) // the program's end
	Resident() <-chan struct{}      // closed when all memory is there
	WaitPager() error               // until the pager has left, with its error
	DeathSignal() bool              // the program asks for a signal when we end
	Close() error                   // lets go of what the restore holds, once the pager has left
	Stats() lazyrestore.Stats
}

// What the verbs call; tests put their own here.
var (
	checkpointProcess = lazyrestore.Checkpoint
	restoreImage      = func(ctx context.Context, image string, opts lazyrestore.RestoreOptions) (process, error) {
		return lazyrestore.Restore(ctx, image, opts)
	}
)

// openSource opens an image for reading: a directory, or one of page servers.
func (c *command) openSource(ctx context.Context, path string, r *remote) (image.Source, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	return lazyrestore.OpenSource(ctx, path, r.source(), c.Logger(c.Stderr))
}
