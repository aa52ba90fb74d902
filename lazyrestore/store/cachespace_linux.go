package store

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// lookEvery is after how many bytes the directory of a cache is looked at
// again: others write to it, too.
const lookEvery = 64 << 20

var errCacheFull = errors.New("it has reached its limit, and all images in it are in use")

// cacheSpace keeps a cache within its limit, but for what is written between
// two looks. To look, and to remove images, may take seconds, and who keeps something may have
// a process wait for it: that is done by a goroutine, before what may be kept is used up.
// Where it is all the same, what comes meanwhile is not kept.
type cacheSpace struct {
	limit int64
	look  func() (used int64, err error) // removes what has to go
	looks sync.WaitGroup                 // the goroutine

	mu      sync.Mutex
	left    int64 // guarded by mu: bytes that may be kept until a look has ended
	next    int64 // guarded by mu: bytes that come until a look begins
	during  int64 // guarded by mu: bytes kept since the one under way has begun
	looking bool  // guarded by mu: one is under way
	full    bool  // guarded by mu: the last one found no room for more than left
}

// step is for how much there is to be room after a look, and what is kept before the first one.
func (sp *cacheSpace) step() int64 { return min(lookEvery, sp.limit/8) }

// take reports whether n more bytes may be kept.
func (sp *cacheSpace) take(c *Cache, n int64) bool {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.next -= n; sp.next <= 0 && !sp.looking {
		sp.looking, sp.during = true, 0
		sp.looks.Go(func() { sp.review(c) })
	}
	if n > sp.left {
		if sp.full {
			c.complain(errCacheFull)
		}
		return false
	}
	sp.left -= n
	sp.during += n
	return true
}

// review finds out how much may be kept from now on.
func (sp *cacheSpace) review(c *Cache) {
	used, err := sp.look()
	if err != nil {
		c.complain(err)
	}
	sp.mu.Lock()
	defer sp.mu.Unlock()
	room := sp.limit - used
	sp.full = room < sp.step()
	// Whether used has what was kept meanwhile is not known.
	sp.left = max(min(lookEvery, room)-sp.during, 0)
	if sp.next = sp.left / 2; sp.full {
		sp.next = lookEvery
	}
	sp.looking = false
}

// An entry is an image in a cache.
type cacheEntry struct {
	path string
	used time.Time
	size int64 // on the disk
}

// shrinkCache removes images that nobody uses, the one that was opened longest
// ago first, until the cache is within its limit and has room for what comes next, and returns its size.
func shrinkCache(root string, limit, room int64) (int64, error) {
	dirs, err := os.ReadDir(root)
	if err != nil {
		return 0, err
	}
	var total int64
	var entries []cacheEntry
	for _, d := range dirs {
		if !d.IsDir() || !strings.HasPrefix(d.Name(), "sha256-") {
			continue
		}
		info, err := d.Info()
		if err != nil {
			continue // removed meanwhile
		}
		e := cacheEntry{filepath.Join(root, d.Name()), info.ModTime(), diskSize(filepath.Join(root, d.Name()))}
		total += e.size
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b cacheEntry) int { return cmp.Or(a.used.Compare(b.used), strings.Compare(a.path, b.path)) })
	var errs []error
	for _, e := range entries {
		if total <= limit-room {
			break
		}
		removed, err := removeCached(e.path)
		if err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", e.path, err))
		} else if removed {
			total -= e.size
		}
	}
	return total, errors.Join(errs...)
}

// diskSize is what the files in a directory take.
func diskSize(path string) int64 {
	entries, _ := os.ReadDir(path)
	var total int64
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(path, e.Name()), &st) == nil {
			total += st.Blocks * 512
		}
	}
	return total
}

// removeCached removes an image unless it is in use.
func removeCached(path string) (bool, error) {
	fd, err := openat(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return errors.Is(err, unix.ENOENT), nil
	}
	defer unix.Close(fd)
	return removeOpenedCached(path, fd)
}

// removeOpenedCached is removeCached of the directory fd, which had the path when it was opened.
// Somebody else may have removed it since, and a third made it anew: what has the path then is
// in use, and what is locked is not it.
func removeOpenedCached(path string, fd int) (bool, error) {
	err := flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) || err == nil && !hasName(fd, unix.AT_FDCWD, path) {
		return false, nil
	}
	if err == nil {
		err = os.RemoveAll(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return err == nil, err
}
