package native

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// An inotify instance watches inodes, of which the kernel tells numbers and
// handles; a restore needs their paths, and the numbers that the watches had.

// A FileWatch is one watch of the inotify instance with index Open.
type FileWatch struct {
	Open uint32
	WD   int
	Mask uint32
	Path string
}

// maxWD bounds the numbers of watches: a restore makes and removes as many.
const maxWD = 1 << 20

func (c *capture) describeInotify(d *descriptor, o *Open) error {
	o.Kind = OpenInotify
	slices.SortFunc(d.info.Inotify, func(a, b proc.InotifyWatch) int { return cmp.Compare(a.WD, b.WD) })
	for i := range d.info.Inotify {
		w := &d.info.Inotify[i]
		path, err := c.watchedPath(w)
		if err != nil || w.WD < 1 || w.WD > maxWD {
			c.refused.add(d.String(), fmt.Sprintf("what its watch %d is on cannot be named: %v", w.WD, err), "close it for the checkpoint")
			continue
		}
		c.st.FileWatches = append(c.st.FileWatches, FileWatch{Open: d.open, WD: w.WD, Mask: w.Mask, Path: path})
	}
	return c.withFD(d, func(fd int) error {
		n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
		if err == nil && n > 0 {
			c.refused.add(d.String(), fmt.Sprintf("%d bytes of events were not read, which nobody can put back", n), "let the program read them first")
		}
		return err
	})
}

// watchedPath finds a path that leads to an inode: by its handle, on a mount of
// its file system; or among what the process has open.
func (c *capture) watchedPath(w *proc.InotifyWatch) (string, error) {
	leads := func(path string) bool {
		var st unix.Stat_t
		err := unix.Lstat(path, &st)
		return err == nil && st.Ino == w.Inode && kernelDev(st.Dev) == w.Dev
	}
	mounts := []string{c.st.Cwd, "/"}
	for i := range c.fds.list {
		if link := c.fds.list[i].link; filepath.IsAbs(link) {
			mounts = append(mounts, link, filepath.Dir(link))
		}
	}
	tried := errors.New("no path leads to it")
	for _, path := range mounts {
		if leads(path) {
			return path, nil
		}
		var st unix.Stat_t
		if len(w.Handle) == 0 || unix.Stat(path, &st) != nil || kernelDev(st.Dev) != w.Dev {
			continue
		}
		found, err := pathByHandle(path, w)
		if err == nil && leads(found) {
			return found, nil
		}
		if err != nil {
			tried = err
		}
	}
	return "", tried
}

// kernelDev is the kernel's own number of a device that stat(2) tells.
func kernelDev(dev uint64) uint64 { return uint64(unix.Major(dev))<<20 | uint64(unix.Minor(dev)) }

func pathByHandle(mount string, w *proc.InotifyWatch) (string, error) {
	at, err := unix.Open(mount, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(at)
	fd, err := unix.OpenByHandleAt(at, unix.NewFileHandle(w.HandleType, w.Handle), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", os.NewSyscallError("open_by_handle_at", err)
	}
	defer unix.Close(fd)
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}

// inotify makes an instance whose watches have their numbers, and look out for
// next to nothing: the restore itself would raise events. The process gives
// them their masks at the end.
func (r *reopener) inotify(o *Open, index int) (int, error) {
	fd, err := r.raiseNew(unix.InotifyInit1(unix.IN_NONBLOCK))
	if err != nil {
		return -1, fmt.Errorf("make an inotify instance: %w", err)
	}
	at := 1
	for i := range r.st.FileWatches {
		w := &r.st.FileWatches[i]
		if int(w.Open) != index {
			continue
		}
		if err := r.watch(fd, w, &at); err != nil {
			return -1, err
		}
	}
	// What the making of numbers has queued.
	buf := make([]byte, 1<<16)
	for {
		if _, err := unix.Read(fd, buf); errors.Is(err, unix.EAGAIN) {
			break
		} else if err != nil {
			return -1, fmt.Errorf("read an inotify instance: %w", err)
		}
	}
	if o.Flags&unix.O_NONBLOCK == 0 {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0)
	}
	return fd, err
}

// watch adds a watch with its old number: the kernel counts up.
func (r *reopener) watch(fd int, w *FileWatch, at *int) error {
	for {
		got, err := unix.InotifyAddWatch(fd, w.Path, unix.IN_DELETE_SELF|unix.IN_DONT_FOLLOW)
		if err != nil {
			r.refused.add(w.Path, "it is watched (inotify): "+err.Error(), "make it again")
			return nil
		}
		*at++
		if got == w.WD {
			return nil
		}
		if _, err := unix.InotifyRmWatch(fd, uint32(got)); err != nil {
			return fmt.Errorf("remove watch %d: %w", got, err)
		}
		if *at > maxWD+1 || got > w.WD {
			return fmt.Errorf("%w: watch %d cannot be had", errState, w.WD)
		}
	}
}

// fileWatches plans the masks of the watches.
func (b *builder) fileWatches(t *table) {
	for i := range b.st.FileWatches {
		w := &b.st.FileWatches[i]
		t.call("watch", unix.SYS_INOTIFY_ADD_WATCH, uint64(b.re.opens[w.Open]), b.prog.cstring(w.Path), uint64(w.Mask)|unix.IN_DONT_FOLLOW).on(w.Path).returns(uint64(w.WD))
	}
}

func (st *State) validFileWatches() error {
	last := FileWatch{}
	for _, w := range st.FileWatches {
		switch {
		case uint64(w.Open) >= uint64(len(st.Opens)) || st.Opens[w.Open].Kind != OpenInotify || w.Open < last.Open,
			w.WD < 1 || w.WD > maxWD || w.Open == last.Open && w.WD <= last.WD:
			return fmt.Errorf("watch %d of description %d cannot be", w.WD, w.Open)
		}
		last = w
	}
	return nil
}
