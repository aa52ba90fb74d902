package pageserver

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// A held image is one that somebody has open. But for refs it never changes.
type held struct {
	name    string
	id      identity
	digest  [sha256.Size]byte
	size    int64 // bytes of all objects
	objects map[string]*object
	listed  []wire.Object // ascending by name

	refs int // under Catalog.mu
}

// An object is an open file of an image.
type object struct {
	fd       int
	stamp    stamp
	inMemory bool // the file system is memory: no read waits for a disk
}

// An identity tells an image from another one in its place.
type identity struct {
	dev, ino uint64 // of manifest.json
	stamp    stamp
}

// A stamp changes when a file is written to.
type stamp struct {
	size  int64
	mtime unix.Timespec
}

var errNotRegular = errors.New("not a regular file")

// damaged is the answer to who wants to open an image that is none, or for which there are no
// descriptors.
func damaged(name, what string, err error) error {
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		return failure(wire.CodeFailed, "image %s: %s: %v", name, what, err)
	}
	return &wire.Error{Code: wire.CodeDamaged, Text: fmt.Sprintf("image %s: %s: %v", name, what, err)}
}

// identify says which image is in a directory.
func identify(dir int) (identity, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, image.ManifestObject, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return identity{}, err
	}
	return identityOf(&st), nil
}

func identityOf(st *unix.Stat_t) identity {
	return identity{dev: st.Dev, ino: st.Ino, stamp: stamp{size: st.Size, mtime: st.Mtim}}
}

// open opens the objects that the manifest names, and nothing else. It asks reserve
// first, if so many may be open; nil: they are only looked at, and none stays open. The
// error is a *wire.Error.
func open(name string, dir int, reserve func(files int) error) (*held, error) {
	h := &held{name: name, objects: make(map[string]*object)}
	err := h.load(dir, reserve)
	if err != nil || reserve == nil {
		h.close()
	}
	if err != nil {
		return nil, err
	}
	return h, nil
}

func (h *held) load(dir int, reserve func(files int) error) error {
	manifest, st, err := openObject(dir, image.ManifestObject)
	if err != nil {
		return damaged(h.name, image.ManifestObject, err)
	}
	h.id = identityOf(st)
	h.add(image.ManifestObject, manifest)
	if st.Size > image.MaxManifest {
		return damaged(h.name, image.ManifestObject, fmt.Errorf("%d bytes are too many for a manifest", st.Size))
	}
	b := make([]byte, st.Size)
	if err := manifest.read(b, 0); err != nil {
		return damaged(h.name, image.ManifestObject, err)
	}
	m, err := image.ParseManifest(b)
	if err != nil {
		return &wire.Error{Code: wire.CodeDamaged, Text: fmt.Sprintf("image %s: %v", h.name, err)}
	}
	if n := wire.OpenedBytes(m.Names()); n > wire.MaxReply {
		return failure(wire.CodeLimit, "image %s: the list of its %d objects is too long to be sent: %d bytes, at most %d are allowed", h.name, len(m.Objects)+1, n, wire.MaxReply)
	}
	h.digest = sha256.Sum256(b)
	if reserve != nil {
		if err := reserve(len(m.Objects) + 1); err != nil {
			return err
		}
	}
	for name, want := range m.Objects {
		o, st, err := openObject(dir, name)
		if err != nil {
			return damaged(h.name, name, err)
		}
		h.add(name, o)
		if reserve == nil {
			h.close()
		}
		if st.Size != want.Size {
			return damaged(h.name, name, fmt.Errorf("%d bytes, not %d", st.Size, want.Size))
		}
	}
	slices.SortFunc(h.listed, func(a, b wire.Object) int { return cmp.Compare(a.Name, b.Name) })
	return nil
}

func (h *held) add(name string, o *object) {
	h.objects[name] = o
	h.size += o.stamp.size
	h.listed = append(h.listed, wire.Object{Name: name, Size: o.stamp.size})
}

// close closes the objects.
func (h *held) close() {
	for _, o := range h.objects {
		unix.Close(o.fd)
	}
	clear(h.objects)
}

// unchanged reports whether no object has been written to.
func (h *held) unchanged() bool {
	for _, o := range h.objects {
		if !o.unchanged() {
			return false
		}
	}
	return true
}

// openObject opens a regular file in the image's directory.
func openObject(dir int, name string) (*object, *unix.Stat_t, error) {
	fd, err := openat2(dir, name, unix.O_NOFOLLOW, beneath|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return nil, nil, err
	}
	var st unix.Stat_t
	var sfs unix.Statfs_t
	err = cmp.Or(unix.Fstat(fd, &st), unix.Fstatfs(fd, &sfs))
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errNotRegular
	}
	if err != nil {
		return nil, nil, errors.Join(err, unix.Close(fd))
	}
	memory := sfs.Type == unix.TMPFS_MAGIC || sfs.Type == unix.RAMFS_MAGIC
	return &object{fd: fd, stamp: stamp{size: st.Size, mtime: st.Mtim}, inMemory: memory}, &st, nil
}

// unchanged reports whether the file is as it was when it was opened.
func (o *object) unchanged() bool {
	var st unix.Stat_t
	return unix.Fstat(o.fd, &st) == nil && st.Size == o.stamp.size && st.Mtim == o.stamp.mtime
}

// read fills p from the file, however long that takes.
func (o *object) read(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(o.fd, p, off)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		default:
			p, off = p[n:], off+int64(n)
		}
	}
	return nil
}

// readNow fills p if all of it is in memory.
func (o *object) readNow(p []byte, off int64) bool {
	if o.inMemory {
		return o.read(p, off) == nil
	}
	n, err := unix.Preadv2(o.fd, [][]byte{p}, off, unix.RWF_NOWAIT)
	return err == nil && n == len(p)
}

// cached reports whether a range is in the page cache, by its last byte.
func (o *object) cached(off, n int64) bool {
	var last [1]byte
	return o.inMemory || n == 0 || o.readNow(last[:], off+n-1)
}

// fetch waits until a range is in the page cache, or as good as: what sends it
// then does not wait for the disk.
func (o *object) fetch(off, n int64) error {
	if o.cached(off, n) {
		return nil
	}
	var last [1]byte
	// Only a hint; the read waits.
	_ = unix.Fadvise(o.fd, off, n, unix.FADV_WILLNEED)
	return o.read(last[:], off+n-1)
}
