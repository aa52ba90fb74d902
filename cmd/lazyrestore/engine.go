package main

import (
	"context"
	"errors"

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
	Stats() lazyrestore.Stats
}

var errNotLinked = errors.New("this build has no engine")

// checkpointProcess and restoreImage are the library's; tests put their own here.
var (
	checkpointProcess = func(context.Context, int, lazyrestore.CheckpointOptions) (*lazyrestore.CheckpointResult, error) {
		return nil, errNotLinked
	}
	restoreImage = func(context.Context, string, lazyrestore.RestoreOptions) (process, error) {
		return nil, errNotLinked
	}
	decodeState = func([]byte) (any, error) { return nil, errNotLinked }
	openSource  = func(path string) (image.Source, error) { return store.OpenDir(path) }
)
