package native

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Files of memory file systems that have a name (in /dev/shm, say) are gone with
// their machine: their content is in the image. A restore uses the file if it
// is there as it was, and makes it again if it is gone.

// inMemory reports whether the file system of a file, which link leads to, has
// its files in memory.
func (c *capture) inMemory(dev uint64, link string) (bool, error) {
	kind, err := c.fileSystem(dev, link)
	return ofMemory(kind), err
}

func ofMemory(kind int64) bool { return kind == unix.TMPFS_MAGIC || kind == unix.RAMFS_MAGIC }

// fileSystem is the kind of a file system, as statfs(2) has it. Without it nobody knows
// whether the files would be there after a restart: it is no kind of file system that is
// not told, as where a pager has joined the mapping that link is of (fromProc). Only one that
// has no such call, as a program's by way of FUSE, is none of those that matter.
func (c *capture) fileSystem(dev uint64, link string) (int64, error) {
	if kind, known := c.systems[dev]; known {
		return kind, nil
	}
	var fs unix.Statfs_t
	err := unix.Statfs(link, &fs)
	if err != nil && !errors.Is(err, unix.ENOSYS) {
		return 0, fmt.Errorf("look at the file system of %s: %w", link, err)
	}
	if c.systems == nil {
		c.systems = make(map[uint64]int64)
	}
	c.systems[dev] = fs.Type
	return fs.Type, nil
}

// unreadable says why the content of files of such a file system cannot be part of an image, or
// be made again as it was; empty where it can.
func unreadable(kind int64) string {
	switch kind {
	case unix.HUGETLBFS_MAGIC:
		return "shared huge pages, and files of hugetlbfs, are not preserved"
	case unix.SECRETMEM_MAGIC:
		return "secret memory (memfd_secret) cannot be read"
	case mqueueMagic:
		return "message queues are not preserved"
	}
	return ""
}

// mqueueMagic is MQUEUE_MAGIC, which <linux/magic.h> does not have.
const mqueueMagic = 0x19800202

// ofKernel reports whether the files of a file system are made by the kernel as they are
// read: of one that is gone there is no content to keep.
func ofKernel(kind int64) bool {
	switch kind {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC:
		return true
	}
	return false
}

// memoryFile takes the content of a file that has a name in a memory file
// system.
func (c *capture) memoryFile(path, link string, st *unix.Stat_t, written, shared bool) error {
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	if inMemory, err := c.inMemory(st.Dev, link); !inMemory || err != nil {
		return err
	}
	o := c.object(objectID{st.Dev, st.Ino}, path, link, st)
	o.descriptors++
	o.written = o.written || written
	o.shared = o.shared || shared && written
	m := &c.st.Shared[o.index].More
	m.Mode, m.UID, m.GID, m.Path, m.MTime = st.Mode, st.Uid, st.Gid, path, st.Mtim.Nano()
	m.Mapped = o.shared
	return nil
}

// memoryFile makes a file of a memory file system again, if it is gone. One that
// is there has to be as it was: what is mapped changes without a trace but in
// its content.
func (r *reopener) memoryFile(s *SharedObject, id uint32) error {
	m := &s.More
	var st unix.Stat_t
	err := unix.Stat(m.Path, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return r.makeMemoryFile(s, id)
	case err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil // those that open it will tell
	case !m.Mapped && st.Size == int64(s.Size) && st.Mtim.Nano() == m.MTime:
		return nil
	case st.Size != int64(s.Size):
		return nil // likewise
	}
	same, err := r.sameContent(s, id)
	if err != nil {
		return err
	}
	if same {
		r.same(m.Path)
		return nil
	}
	// Else a damaged image would look like a changed file, and to remove it be the help.
	if err := checkEager(r.opts.Eager, r.st.EagerBytes, r.st.EagerSum); err != nil {
		return err
	}
	if m.Mapped && st.Mtim.Nano() == m.MTime {
		r.changed(m.Path, "its content was changed after the checkpoint", "remove it, and the restore makes it again; or accept it with --changed-files=warn")
	}
	return nil
}

func (r *reopener) makeMemoryFile(s *SharedObject, id uint32) error {
	m := &s.More
	fd, err := unix.Open(m.Path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		r.refused.add(m.Path, "make it again: "+err.Error(), "make the directory that it was in")
		return nil
	}
	defer unix.Close(fd)
	r.made = append(r.made, m.Path)
	if err := r.fillObject(fd, s, id); err != nil {
		return err
	}
	if err := r.giveAway(fd, m); err != nil {
		return fmt.Errorf("make %s again: %w", m.Path, err)
	}
	r.same(m.Path)
	return nil
}

// same notes that a file is as it was, whatever its times say.
func (r *reopener) same(path string) {
	if r.asWere == nil {
		r.asWere = make(map[string]bool)
	}
	r.asWere[path] = true
}

// unmake removes the files that were made for a restore that has failed.
func (r *reopener) unmake() {
	removeAll(r.made)
	r.made = nil
}

func removeAll(paths []string) {
	for _, path := range paths {
		_ = os.Remove(path)
	}
}

// sameContent compares a file with an object's content. What eager.raw does not
// have was a hole.
func (r *reopener) sameContent(s *SharedObject, id uint32) (bool, error) {
	f, err := os.Open(s.More.Path)
	if err != nil {
		return false, nil // whoever opens it will tell
	}
	defer f.Close()
	at, same := int64(0), true
	zero := func(end int64) {
		same = same && allZeroIn(f, at, end)
	}
	err = r.eachEager(s, id, func(start, off, n int64) error {
		zero(start)
		if r.opts.Eager == nil {
			return damagedEager(errMissing)
		}
		equal, err := equalIn(f, start, r.opts.Eager, off, n)
		same, at = same && equal, start+n
		return err
	})
	zero(int64(s.Size))
	return same, err
}

// How much is compared at a time: little at first, for of a file that was written to
// since that mostly tells, and never more than stays in a processor's cache, for the memory
// for it is taken while the process waits.
const (
	firstCompare = 4 << 10
	compareStep  = 16 << 10
)

func equalIn(a io.ReaderAt, aOff int64, b io.ReaderAt, bOff, n int64) (bool, error) {
	x, y := make([]byte, min(n, compareStep)), make([]byte, min(n, compareStep))
	for most := int64(firstCompare); n > 0; most = compareStep {
		step := min(n, most)
		if _, err := a.ReadAt(x[:step], aOff); err != nil {
			return false, nil // it is shorter now
		}
		if _, err := b.ReadAt(y[:step], bOff); errors.Is(err, io.EOF) {
			return false, damagedEager(io.ErrUnexpectedEOF)
		} else if err != nil {
			return false, fmt.Errorf("read the content that a file had: %w", err)
		}
		if string(x[:step]) != string(y[:step]) {
			return false, nil
		}
		aOff, bOff, n = aOff+step, bOff+step, n-step
	}
	return true, nil
}

func allZeroIn(f io.ReaderAt, at, end int64) bool {
	if at >= end {
		return true
	}
	x := make([]byte, min(end-at, compareStep))
	for at < end {
		step := min(end-at, compareStep)
		if _, err := f.ReadAt(x[:step], at); err != nil || !allZero(x[:step]) {
			return false
		}
		at += step
	}
	return true
}
