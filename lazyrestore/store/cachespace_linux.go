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
// two looks.
type cacheSpace struct {
	mu   sync.Mutex
	left int64 // guarded by mu: bytes to write before the next look
	full bool  // guarded by mu: the last look found no room
}

// take reports whether n more bytes may be kept.
func (sp *cacheSpace) take(c *Cache, n int64) bool {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.left -= n; sp.left > 0 {
		return !sp.full
	}
	used, err := shrinkCache(c.root, c.limit)
	if err != nil {
		c.complain(err)
	}
	room := c.limit - used
	sp.full = room < n
	if sp.full {
		c.complain(errCacheFull)
		sp.left = lookEvery
		return false
	}
	sp.left = min(lookEvery, room)
	return true
}

// An entry is an image in a cache.
type cacheEntry struct {
	path string
	used time.Time
	size int64 // on the disk
}

// shrinkCache removes images that nobody uses, the one that was opened longest
// ago first, until the cache is within its limit, and returns its size.
func shrinkCache(root string, limit int64) (int64, error) {
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
		if total <= limit-min(lookEvery, limit/8) { // room for what comes next
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
