package main

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/native"
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
	Stats() lazyrestore.Stats
}

// checkpointProcess and restoreImage are the library's; tests put their own here.
var (
	checkpointProcess = lazyrestore.Checkpoint
	restoreImage      = func(ctx context.Context, path string, opts lazyrestore.RestoreOptions) (process, error) {
		p, err := lazyrestore.Restore(ctx, path, opts)
		if err != nil {
			return nil, err
		}
		return p, nil
	}
	decodeState = func(b []byte) (any, error) { return native.DecodeState(b) }
	openSource  = func(path string) (image.Source, error) { return store.OpenDir(path) }
)
