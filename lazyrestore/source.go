package lazyrestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
	"github.com/lazyrestore/lazyrestore/pageserver/client"
)

// SourceOptions say how an image is reached. The zero value works for
// directories, and for servers at IPv4 addresses, at localhost and on unix sockets.
type SourceOptions struct {
	// Dial connects to page servers; client.Dial if nil, which knows neither
	// names of hosts nor TLS. It may be called by several goroutines at once.
	Dial client.Dialer
	// Cache is a directory in which what page servers give is kept for later
	// restores; none if empty. Where its disk is full, read-only or failing the restore
	// goes on without it, and the log says so. CacheSize bounds it, in bytes; 0 is 16 GiB.
	Cache     string
	CacheSize int64
}

// OpenSource opens the image that name stands for: a directory, or an address
// of page servers as client.ParseAddress reads it. An image of servers is
// opened, so that a server which does not have it is found out here. The caller
// closes the source. log may be nil.
//
// The error wraps ErrSourceLost where no server gives the image, image.ErrDamaged
// where servers have another image than the digest says, else client.ErrAddress
// or that of the file system.
func OpenSource(ctx context.Context, name string, opts SourceOptions, log *slog.Logger) (image.Source, error) {
	return openSource(ctx, name, opts, client.Options{Logger: log})
}

func openSource(ctx context.Context, name string, opts SourceOptions, remote client.Options) (image.Source, error) {
	if !client.IsAddress(name) {
		dir, err := store.OpenDir(name)
		if err != nil {
			return nil, err // not a nil *store.Dir
		}
		return dir, nil
	}
	addr, err := client.ParseAddress(name)
	if err != nil {
		return nil, err
	}
	remote.Dial = opts.Dial
	c, err := client.Open(ctx, addr, remote)
	switch {
	case errors.Is(err, client.ErrOtherImage):
		return nil, fmt.Errorf("%w: %w", image.ErrDamaged, err)
	case err != nil:
		return nil, lost(err)
	case opts.Cache == "":
		return c, nil
	}
	if remote.Logger == nil {
		remote.Logger = slog.New(slog.DiscardHandler)
	}
	cached, err := store.OpenCache(opts.Cache, c.Digest(), c, store.CacheOptions{Limit: opts.CacheSize, Logger: remote.Logger})
	if errors.Is(err, store.ErrNoRoom) {
		remote.Logger.Warn("the image is taken without the cache", "cache", opts.Cache, "error", err)
		return c, nil
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return cached, nil
}

// lost says so where it is the servers that cannot be had.
func lost(err error) error {
	var gone *client.UnavailableError
	if errors.As(err, &gone) && !errors.Is(err, client.ErrNoImage) && !errors.Is(err, ErrSourceLost) {
		return fmt.Errorf("%w: %w", ErrSourceLost, err)
	}
	return err
}

// place is a name of an image that means the same everywhere on this machine.
func place(name string) (string, error) {
	if client.IsAddress(name) {
		return name, nil
	}
	return filepath.Abs(name)
}

// objectError is the error of a read of an object: damage, where it is not
// there or too short.
func objectError(object string, err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &image.DamagedError{Object: object, Frame: image.NoFrame, Err: err}
	}
	return fmt.Errorf("read %s: %w", object, lost(err))
}

// objectFile is an object as a file: its own, or one in memory that it is
// read into.
func objectFile(ctx context.Context, src image.Source, object string) (*os.File, error) {
	if files, ok := src.(image.Filer); ok {
		return files.File(object)
	}
	size, err := src.Size(ctx, object)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("lazyrestore "+object, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), object)
	err = image.ReadSteps(ctx, src, object, 0, size, func(b []byte) error {
		_, err := f.Write(b)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// traffic is how many bytes a source has received over the network, and how
// many a cache before it had.
func traffic(src image.Source) (received, cached uint64) {
	if c, ok := src.(*store.Cache); ok {
		src, cached = c.Under(), c.Hits()
	}
	if c, ok := src.(*client.Client); ok {
		demand, background := c.Traffic()
		received = demand + background
	}
	return received, cached
}
