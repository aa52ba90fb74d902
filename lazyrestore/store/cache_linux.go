package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

// DefaultCacheLimit is how large a cache grows.
const DefaultCacheLimit = 16 << 30

// ErrNoRoom is returned for a cache that cannot take an image: without it all works too.
var ErrNoRoom = errors.New("nothing can be kept there")

// CacheOptions say how a Cache works. The zero value does.
type CacheOptions struct {
	Limit  int64        // of all images in the directory, in bytes; DefaultCacheLimit if zero
	Logger *slog.Logger // discards if nil
}

// A Cache keeps what a source gives in a directory, for whoever reads the same
// image later or at the same time, from whatever source. It is an
// image.Source, image.Immediate and image.Rejecter; all methods but Close may
// be called concurrently, and any number of processes may use the directory.
//
// Images are told apart by their digests. For each object there is a file with
// its bytes, as far as they are known, at their own offsets, and a map with a
// byte for each block of the file: 1 where all of the block is there. A byte is
// written after its block, so that readers need no lock. What a crash, or a
// failing disk, leaves behind is found as all damage is: whoever reads frames
// checks them, tells Reject, and gets them from the source.
//
// The manifest is never kept: it is what the digest is of.
//
// A cache that cannot be written to, for its disk is full or its limit reached
// with all images in use, hands on what the source gives.
type Cache struct {
	under image.Source
	root  string // directory of all images
	dir   int    // the image's directory, locked against its removal
	path  string
	log   *slog.Logger
	space cacheSpace
	hits  atomic.Uint64
	quiet atomic.Bool // it was said that nothing can be kept

	mu      sync.Mutex
	objects map[string]*cached // guarded by mu; nil where there can be none
}

var (
	_ image.Source    = (*Cache)(nil)
	_ image.Immediate = (*Cache)(nil)
	_ image.Prompt    = (*Cache)(nil)
	_ image.Rejecter  = (*Cache)(nil)
	_ image.Digester  = (*Cache)(nil)
)

// OpenCache opens the cache in directory root, which is made if need be, for
// the image of that digest ("sha256:" and 64 hex digits), which under gives. It
// takes under over, unless it fails. The error wraps ErrNoRoom where there is no room for
// one more image, or none can be written.
func OpenCache(root, digest string, under image.Source, opts CacheOptions) (*Cache, error) {
	if opts.Limit == 0 {
		opts.Limit = DefaultCacheLimit
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	digest, err := image.ParseDigest(digest)
	if err != nil {
		return nil, fmt.Errorf("open cache %s: %w", root, err)
	}
	if err := os.Mkdir(root, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make cache: %w", noRoom(err))
	}
	if err := onlyOurs(root); err != nil {
		return nil, err
	}
	c := &Cache{
		under: under, root: root, log: opts.Logger,
		path:    filepath.Join(root, strings.Replace(digest, ":", "-", 1)),
		objects: make(map[string]*cached),
	}
	c.space.limit = opts.Limit
	c.space.left = c.space.step()
	c.space.look = func() (int64, error) { return shrinkCache(root, opts.Limit, c.space.step()) }
	if c.dir, err = enterCached(c.path); err != nil {
		return nil, fmt.Errorf("open cache: %w", noRoom(err))
	}
	return c, nil
}

// noRoom makes errors of a disk that is full, read-only or failing into ErrNoRoom.
func noRoom(err error) error {
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EIO} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", ErrNoRoom, err)
		}
	}
	return err
}

// onlyOurs refuses a directory that others can write to: it is to hold the
// memory of processes.
func onlyOurs(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &fs.PathError{Op: "open cache", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return &fs.PathError{Op: "open cache", Path: path, Err: unix.ENOTDIR}
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return &fs.PathError{Op: "open cache", Path: path, Err: errors.New("it is not a directory that only this user writes to")}
	}
	return nil
}

// enterCached opens the directory of an image, locked as one that is in use.
func enterCached(path string) (int, error) {
	for {
		if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return -1, err
		}
		fd, err := openat(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue // somebody has removed it
		}
		if err != nil {
			return -1, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		if err := flock(fd, unix.LOCK_SH); err != nil {
			return -1, errors.Join(&fs.PathError{Op: "lock", Path: path, Err: err}, unix.Close(fd))
		}
		if hasName(fd, unix.AT_FDCWD, path) {
			now := unix.NsecToTimespec(time.Now().UnixNano())
			_ = unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{now, now}, 0)
			return fd, nil
		}
		_ = unix.Close(fd) // it was being removed
	}
}

// Size is image.Source's.
func (c *Cache) Size(ctx context.Context, object string) (int64, error) {
	return c.under.Size(ctx, object)
}

// Digest is image.Digester's: that of the source, if it says one.
func (c *Cache) Digest() string {
	if under, ok := c.under.(image.Digester); ok {
		return under.Digest()
	}
	return ""
}

// ReadRange is image.Source's.
func (c *Cache) ReadRange(ctx context.Context, object string, p []byte, off int64, lane image.Lane) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	o := c.object(ctx, object)
	if o == nil || !o.within(p, off) {
		return c.under.ReadRange(ctx, object, p, off, lane)
	}
	from, to := o.missing(off, off+int64(len(p)))
	if from == to {
		if o.read(p, off) {
			c.hits.Add(uint64(len(p)))
			return nil
		}
		from, to = off, off+int64(len(p))
	}
	if err := c.under.ReadRange(ctx, object, p[from-off:to-off], from, lane); err != nil {
		return err
	}
	if !o.read(p[:from-off], off) || !o.read(p[to-off:], to) {
		return c.under.ReadRange(ctx, object, p, off, lane)
	}
	c.hits.Add(uint64(len(p)) - uint64(to-from))
	c.keep(o, p[from-off:to-off], from)
	return nil
}

// ReadNow is image.Immediate's: it reads what is here and in the page cache.
func (c *Cache) ReadNow(object string, p []byte, off int64) (bool, error) {
	c.mu.Lock()
	o := c.objects[object]
	c.mu.Unlock()
	if o != nil && o.within(p, off) && o.readNow(p, off) {
		c.hits.Add(uint64(len(p)))
		return true, nil
	}
	under, ok := c.under.(image.Immediate)
	if !ok {
		return false, nil
	}
	ok, err := under.ReadNow(object, p, off)
	if ok && o != nil && o.within(p, off) {
		c.keep(o, p, off)
	}
	return ok, err
}

// ReadSoon is image.Prompt's: what is not here is the source's, if that is one.
func (c *Cache) ReadSoon(object string, p []byte, off int64) (bool, error) {
	under, ok := c.under.(image.Prompt)
	if !ok {
		return false, nil
	}
	ok, err := under.ReadSoon(object, p, off)
	if ok {
		c.mu.Lock()
		o := c.objects[object]
		c.mu.Unlock()
		if o != nil && o.within(p, off) {
			c.keep(o, p, off)
		}
	}
	return ok, err
}

// Reject is image.Rejecter's: the range is fetched anew. The source is told, if
// that gave it, and says whether it may give another one.
func (c *Cache) Reject(object string, off, n int64, err error) (again bool) {
	c.mu.Lock()
	o := c.objects[object]
	c.mu.Unlock()
	fetched := true
	if o != nil {
		fetched = o.forget(off, n)
	}
	c.log.Warn("damaged bytes", "object", object, "offset", off, "of the cache", !fetched, "error", err)
	if !fetched {
		return true
	}
	under, ok := c.under.(image.Rejecter)
	return ok && under.Reject(object, off, n, err)
}

// Hits is how many bytes were read that were here.
func (c *Cache) Hits() uint64 { return c.hits.Load() }

// Under is the source.
func (c *Cache) Under() image.Source { return c.under }

// String is the source's, if it has one.
func (c *Cache) String() string { return fmt.Sprint(c.under) }

// Close closes the cache and the source. It waits for what is being removed from the cache.
func (c *Cache) Close() error {
	errs := []error{c.under.Close()}
	c.space.looks.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range c.objects {
		if o != nil {
			errs = append(errs, o.close())
		}
	}
	c.objects = nil
	errs = append(errs, unix.Close(c.dir))
	return errors.Join(errs...)
}

// object is what is kept of an object; nil where nothing can be.
func (c *Cache) object(ctx context.Context, name string) *cached {
	if name == image.ManifestObject || !validName(name) {
		return nil
	}
	c.mu.Lock()
	o, ok := c.objects[name]
	c.mu.Unlock()
	if ok {
		return o
	}
	size, err := c.under.Size(ctx, name)
	if err != nil {
		return nil // the read will say so
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if o, ok := c.objects[name]; ok || c.objects == nil {
		return o
	}
	if o, err = openCached(c.dir, name, size); err != nil {
		c.complain(err)
		o = nil
	}
	c.objects[name] = o
	return o
}

// keep writes what the source gave.
func (c *Cache) keep(o *cached, p []byte, off int64) {
	if !c.space.take(c, int64(len(p))) {
		return
	}
	if err := o.write(p, off); err != nil {
		c.complain(err)
	}
}

// complain says once that something cannot be kept.
func (c *Cache) complain(err error) {
	if !c.quiet.Swap(true) {
		c.log.Warn("the cache does not keep what comes", "cache", c.root, "error", err)
	}
}
