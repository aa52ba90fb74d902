package main

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
)

// A process is what a restore gives: a program that runs and a pager beside it.
type process interface {
	PID() int
	Result() lazyrestore.RestoreResult
	Signal(unix.Signal) error
	Wait() (unix.WaitStatus, error) // the program's end
	Resident() <-chan struct{}      // closed when all memory is there
	WaitPager() error               // until the pager has left, with its error
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

// openSource opens an image for reading.
func openSource(path string) (image.Source, error) { return store.OpenDir(path) }
