package store

import (
	"errors"
	"math"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
)

// cacheBlock is what a byte of the map stands for.
const cacheBlock = 4 << 10

// mapSuffix is that of an object's map.
const mapSuffix = ".map"

// cached is what is kept of one object.
type cached struct {
	size int64
	data int // file of size bytes, with holes
	have int // its map, a byte for each block

	// useless: what is damaged could not be noted as missing, and would come again.
	useless atomic.Bool

	mu      sync.Mutex
	edges   map[int64]edge   // guarded by mu: blocks of which this process has written a part
	fetched map[int64]uint64 // guarded by mu: of 64 blocks each, a bit for each that this process has marked
}

// An edge is the part of a block that was written, from its begin or to its
// end.
type edge struct{ from, to int64 }

func openCached(dir int, name string, size int64) (*cached, error) {
	o := &cached{size: size, edges: make(map[int64]edge), fetched: make(map[int64]uint64)}
	blocks := size / cacheBlock // of as many as a server says
	if size%cacheBlock != 0 {
		blocks++
	}
	var err error
	if o.have, err = sized(dir, name+mapSuffix, blocks, nil); err != nil {
		return nil, err
	}
	if o.data, err = sized(dir, name, size, func() error { return unix.Ftruncate(o.have, 0) }); err != nil {
		return nil, errors.Join(err, unix.Close(o.have))
	}
	// Once more, if it was emptied.
	if err := unix.Ftruncate(o.have, blocks); err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

// sized opens a file of that size. One of another size is not what we think:
// it is emptied, and other called before.
func sized(dir int, name string, size int64, other func() error) (int, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = errNotRegular
	case st.Size != size && st.Size != 0:
		if other != nil {
			err = other()
		}
		err = errors.Join(err, unix.Ftruncate(fd, 0))
	}
	if err == nil {
		err = unix.Ftruncate(fd, size)
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func (o *cached) close() error { return errors.Join(unix.Close(o.data), unix.Close(o.have)) }

func (o *cached) within(p []byte, off int64) bool {
	return !o.useless.Load() && off >= 0 && int64(len(p)) <= math.MaxInt64-off && off+int64(len(p)) <= o.size
}

// blockEnd is where block b ends.
func (o *cached) blockEnd(b int64) int64 { return b*cacheBlock + min(cacheBlock, o.size-b*cacheBlock) }

// missing is the smallest range that holds all of the bytes from up to to that
// are not here; empty if there are none.
func (o *cached) missing(from, to int64) (int64, int64) {
	if from == to {
		return from, from
	}
	first, last := from/cacheBlock, (to-1)/cacheBlock
	marks := make([]byte, last-first+1)
	if full(unix.Pread, o.have, marks, first) != nil {
		return from, to
	}
	i, j := 0, len(marks)
	for i < j && marks[i] == 1 {
		i++
	}
	for i < j && marks[j-1] == 1 {
		j--
	}
	if i == j {
		return from, from
	}
	return max(from, (first+int64(i))*cacheBlock), min(to, o.blockEnd(first+int64(j)-1))
}

// read fills p, and reports false where that cannot be done.
func (o *cached) read(p []byte, off int64) bool { return full(unix.Pread, o.data, p, off) == nil }

// readNow fills p if all of it is here and in memory.
func (o *cached) readNow(p []byte, off int64) bool {
	if len(p) == 0 {
		return true
	}
	first, last := off/cacheBlock, (off+int64(len(p))-1)/cacheBlock
	var room [64]byte
	var marks []byte
	if n := last - first + 1; n <= int64(len(room)) {
		marks = room[:n]
	} else {
		marks = make([]byte, n)
	}
	if full(readNow, o.have, marks, first) != nil {
		return false
	}
	for _, m := range marks {
		if m != 1 {
			return false
		}
	}
	return full(readNow, o.data, p, off) == nil
}

func readNow(fd int, p []byte, off int64) (int, error) {
	n, errno := thread.PreadNow(fd, p, off)
	if errno != 0 {
		return n, errno
	}
	return n, nil
}

var errCacheShort = errors.New("a file of the cache is shorter than it should be")

// full reads or writes all of p.
func full(call func(int, []byte, int64) (int, error), fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := call(fd, p, off)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return errCacheShort
		default:
			p, off = p[n:], off+int64(n)
		}
	}
	return nil
}

// write keeps p, and then marks the blocks that are whole by it.
func (o *cached) write(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	if err := full(unix.Pwrite, o.data, p, off); err != nil {
		return err
	}
	end := off + int64(len(p))
	first, last := off/cacheBlock, (end-1)/cacheBlock
	if !o.joined(first, off, end) {
		first++
	}
	if last >= first && !o.joined(last, off, end) {
		last--
	}
	if first > last {
		return nil
	}
	marks := make([]byte, last-first+1)
	for i := range marks {
		marks[i] = 1
	}
	o.mu.Lock()
	for b := first; b <= last; b++ {
		o.fetched[b/64] |= 1 << (b % 64)
	}
	o.mu.Unlock()
	return full(unix.Pwrite, o.have, marks, first)
}

// joined notes that the bytes from up to to are written, and reports whether
// block b is whole now.
func (o *cached) joined(b, from, to int64) bool {
	from, to = max(from, b*cacheBlock), min(to, o.blockEnd(b))
	o.mu.Lock()
	defer o.mu.Unlock()
	if e, ok := o.edges[b]; ok && from <= e.to && e.from <= to {
		from, to = min(from, e.from), max(to, e.to)
	}
	if from == b*cacheBlock && to == o.blockEnd(b) {
		delete(o.edges, b)
		return true
	}
	o.edges[b] = edge{from, to}
	return false
}

// forget drops the blocks that hold some of the range, and reports whether this
// process has fetched any of them.
func (o *cached) forget(off, n int64) (fetched bool) {
	end := min(off+max(n, 1), o.size)
	if off < 0 || off >= end {
		return true
	}
	first, last := off/cacheBlock, (end-1)/cacheBlock
	if err := full(unix.Pwrite, o.have, make([]byte, last-first+1), first); err != nil {
		o.useless.Store(true)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for b := first; b <= last; b++ {
		if _, ok := o.edges[b]; ok {
			fetched = true
			delete(o.edges, b)
		}
		if bit := uint64(1) << (b % 64); o.fetched[b/64]&bit != 0 {
			fetched = true
			o.fetched[b/64] &^= bit
		}
	}
	return fetched
}
