package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/lazyrestore/lazyrestore/cmd/internal/criucli"
	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pageserver"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pageset"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
)

// serve does what the command line says.
func serve(ctx context.Context, o *criucli.Options, log *slog.Logger) error {
	opts := pageserver.Options{Logger: log}
	if text, said := o.Own["max-clients"]; said {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return &criucli.UsageError{Problem: "--max-clients " + text, Hint: "it is a number above 0"}
		}
		opts.MaxClients = n
	}
	codec, compress := o.Own["codec"]
	switch {
	case o.LazyPages && compress:
		return &criucli.UsageError{Problem: "--lazy-pages and --codec", Hint: "images are either given or made"}
	case o.LazyPages:
		return give(ctx, o, opts)
	}
	if o.AutoDedup {
		log.Warn("--auto-dedup: nothing is removed from the images before")
	}
	target := newFiles
	if compress {
		spec, err := chunk.ParseSpec(codec)
		if err != nil {
			return &criucli.UsageError{Problem: "--codec " + codec, Hint: err.Error()}
		}
		target = func(ctx context.Context, o *criucli.Options) (pageserver.Target, func(), error) {
			return newImage(ctx, o, spec)
		}
	}
	t, clean, err := target(ctx, o)
	if err != nil {
		return err
	}
	defer clean()
	l, err := ready(ctx, o, log)
	if err != nil {
		t.Abort()
		return err
	}
	err = pageserver.Receive(ctx, l, t, opts)
	if errors.Is(err, context.Canceled) {
		return errors.New("ended by a signal before a dump was complete")
	}
	return err
}

// ready listens, and says so.
func ready(ctx context.Context, o *criucli.Options, log *slog.Logger) (net.Listener, error) {
	l, err := listen(ctx, o, log)
	if err != nil {
		return nil, err
	}
	if err := o.Ready(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// give serves pages until it is ended.
func give(ctx context.Context, o *criucli.Options, opts pageserver.Options) error {
	set, closeSet, err := openSet(ctx, o.ImagesDir)
	if err != nil {
		return err
	}
	defer closeSet()
	l, err := ready(ctx, o, opts.Logger)
	if err != nil {
		return err
	}
	return pageserver.Serve(ctx, l, set, opts)
}

// newFiles is a target in CRIU's own files.
func newFiles(_ context.Context, o *criucli.Options) (pageserver.Target, func(), error) {
	f, err := pageserver.NewFiles(o.ImagesDir, o.Parent)
	if err != nil {
		return nil, nil, err
	}
	return f, func() {}, nil
}

// newImage is a target that makes an image of ours; clean removes what is left
// of one that was not completed.
func newImage(ctx context.Context, o *criucli.Options, spec chunk.Spec) (t pageserver.Target, clean func(), err error) {
	var below *pageset.Set
	closeBelow := func() {}
	if o.Parent != "" {
		path := o.Parent
		if !filepath.IsAbs(path) {
			path = filepath.Join(o.ImagesDir, path)
		}
		if below, closeBelow, err = openSet(ctx, path); err != nil {
			return nil, nil, fmt.Errorf("the images to build on (--prev-images-dir): %w", err)
		}
	}
	staging, err := store.CreateDir(o.ImagesDir)
	if err != nil {
		closeBelow()
		return nil, nil, err
	}
	clean = func() {
		staging.Abort()
		closeBelow()
	}
	w, err := image.NewWriter(staging, image.WriterOptions{Spec: spec})
	if err != nil {
		clean()
		return nil, nil, err
	}
	commit := func(ctx context.Context) error {
		m := image.Manifest{Writer: "lazyrestore " + buildVersion, Machine: image.Machine{Arch: runtime.GOARCH}}
		if _, err := w.Finish(ctx, m); err != nil {
			return err
		}
		return staging.Commit()
	}
	return pageserver.NewImage(w, below, commit), clean, nil
}

var errNoImages = errors.New("no images of memory (pagemap-*.img) are in it")

// openSet opens an image set, or an image of ours that was made of one.
func openSet(ctx context.Context, dir string) (*pageset.Set, func(), error) {
	if _, err := os.Stat(filepath.Join(dir, image.ManifestObject)); err == nil {
		return openImage(ctx, dir)
	}
	d, err := imgfile.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	ids, err := d.Memories()
	if err != nil {
		return nil, nil, err
	}
	if len(ids) == 0 {
		return nil, nil, fmt.Errorf("%s: %w", dir, errNoImages)
	}
	set, err := pageset.OfFiles(d)
	if err != nil {
		return nil, nil, err
	}
	return set, func() { set.Close() }, nil
}

func openImage(ctx context.Context, dir string) (*pageset.Set, func(), error) {
	src, err := store.OpenDir(dir)
	if err != nil {
		return nil, nil, err
	}
	im, err := image.Open(ctx, src, image.OpenOptions{})
	if err != nil {
		return nil, nil, errors.Join(err, src.Close())
	}
	if _, native := im.Manifest().Objects[image.ProcessObject]; native {
		return nil, nil, errors.Join(fmt.Errorf("%s is no image of CRIU's: lazyrestore serve serves it", dir), src.Close())
	}
	set, err := pageset.OfImage(ctx, im)
	if err != nil {
		return nil, nil, errors.Join(err, src.Close())
	}
	return set, func() {
		set.Close()
		src.Close() // only read from
	}, nil
}
