package native

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Objects are files whose content is in the image: shared memory, memfds, files
// without a name, and files of memory file systems, which are gone with their
// machine.

// An objectID tells objects apart while they are in use.
type objectID struct{ dev, ino uint64 }

// An object is one as it is captured.
type object struct {
	pid         int // of the process that has it
	id          objectID
	index       uint32 // in State.Shared
	path        string // in /proc: opens it, whoever maps it
	descriptors int    // that refer to it
	pinned      bool   // it has to be there from the start
	shared      bool   // it is mapped shared
	written     bool   // it may be written through a descriptor or a mapping

	// missing is what a pager has not brought yet, where the object has a hole: ranges of the object, ascending, and
	// what they are in the image that it serves from.
	missing []page.Mapping
}

// More is what few objects have beside a name and a size.
type More struct {
	Seals    uint64 // 1 + F_GET_SEALS; 0: it cannot be sealed, or is not
	Mode     uint32 // of the inode, with its type; 0: as memfd_create makes it
	UID, GID uint32
	Dir      string // a file without a name that was on a disk: the directory that it was in
	Path     string // a file of a memory file system that has a name
	MTime    int64  // of Path: nanoseconds
	Mapped   bool   // of Path: it is mapped so that writes to it change nothing but its content
}

// object finds the object of an inode, or makes one. link opens it.
func (c *capture) object(id objectID, name, link string, st *unix.Stat_t) *object {
	if o := c.objects[id]; o != nil {
		return o
	}
	o := &object{pid: c.pid, id: id, index: uint32(len(c.order)), path: link}
	s := SharedObject{Name: objectName(name), Size: uint64(st.Size)}
	if st.Mode&0o7777 != 0o777 || st.Uid != 0 || st.Gid != 0 {
		// Seals depend on it: on a file that may be executed F_SEAL_EXEC is F_SEAL_WRITE too.
		s.More.Mode, s.More.UID, s.More.GID = st.Mode, st.Uid, st.Gid
	}
	if seals, ok := o.seals(); ok && seals != unix.F_SEAL_SEAL {
		s.More.Seals = uint64(seals) + 1
		o.pinned = seals&(unix.F_SEAL_WRITE|unix.F_SEAL_FUTURE_WRITE) != 0 // nobody could bring its pages later
	}
	c.objects[id] = o
	c.order = append(c.order, o)
	c.st.Shared = append(c.st.Shared, s)
	return o
}

// objectName is what a memory file is called, of which a name in /proc tells, or the last
// part of the path that another file had.
func objectName(name string) string {
	name = strings.TrimSuffix(name, deletedSuffix)
	if given, ok := strings.CutPrefix(name, "/memfd:"); ok {
		return given // with what slashes it has
	}
	return name[strings.LastIndexByte(name, '/')+1:]
}

// open opens the object. Its path may be gone, though the process stands still: a pager
// that has brought all joins mappings, of which the names of map_files are. It may go on
// doing so between a look and the open, so there are tries for a while.
func (o *object) open() (int, error) {
	until := time.Now().Add(openPatience)
	for path := o.path; ; {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.ENOENT) || time.Now().After(until) {
			return fd, err
		}
		if path, err = o.mapped(); err != nil {
			return -1, err
		}
		time.Sleep(openPause)
	}
}

// openPatience is far longer than a pager takes to join all of a process's mappings.
const (
	openPatience = time.Second
	openPause    = 100 * time.Microsecond
)

// mapped is a path to the object by a mapping of it, or by what it was found by if none is there.
func (o *object) mapped() (string, error) {
	maps, err := proc.ReadMaps(o.pid)
	if err != nil {
		return "", err
	}
	for i := range maps {
		if maps[i].Inode != o.id.ino {
			continue
		}
		var st unix.Stat_t
		link := mapFile(o.pid, maps[i].Range)
		if unix.Stat(link, &st) == nil && (objectID{st.Dev, st.Ino}) == o.id {
			return link, nil
		}
	}
	return o.path, nil
}

// dataRanges calls f with the parts of the object that have data, as proc.DataRanges.
func (o *object) dataRanges(f func(start, end uint64) error) error {
	fd, err := o.open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return proc.DataRanges("/proc/self/fd/"+strconv.Itoa(fd), f)
}

// read reads pages of the object; the last may be cut off by its end.
func (o *object) read(r page.Range, buf []byte) error {
	fd, err := o.open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for off := 0; off < len(buf); {
		n, err := unix.Pread(fd, buf[off:], int64(r.Start)+int64(off))
		if err != nil {
			return err
		}
		if n == 0 {
			return behindEnd(fd, r.Start+page.Addr(off), buf[off:])
		}
		off += n
	}
	return nil
}

// behindEnd reads what mappings show behind the end of a file, at, within its last page: nobody
// has to keep it there, but the kernel does, for memory at least. Further on there is nothing.
func behindEnd(fd int, at page.Addr, buf []byte) error {
	n := min(int(at.Up()-at), len(buf))
	clear(buf)
	return inMapping(fd, unix.PROT_READ, at, n, func(addr uint64) error {
		_, err := proc.ReadMemory(unix.Getpid(), addr, buf[:n])
		return err
	})
}

// putBehindEnd puts it back, where it is not zero.
func putBehindEnd(fd int, at page.Addr, b []byte) error {
	if allZero(b) {
		return nil
	}
	return inMapping(fd, unix.PROT_READ|unix.PROT_WRITE, at, len(b), func(addr uint64) error {
		_, err := proc.WriteMemory(unix.Getpid(), addr, b)
		return err
	})
}

// inMapping calls f with where n bytes of a file from at on, which lie in one page, are mapped,
// if they can be.
// They are got at by the kernel, which gives an error where a file has become shorter.
func inMapping(fd, prot int, at page.Addr, n int, f func(addr uint64) error) error {
	if n == 0 {
		return nil
	}
	m, err := unix.MmapPtr(fd, int64(at.Down()), nil, page.Size, prot, unix.MAP_SHARED)
	if errors.Is(err, unix.ENODEV) {
		return nil // nobody can map it
	}
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	defer func() { _ = unix.MunmapPtr(m, page.Size) }()
	return f(uint64(uintptr(m)) + uint64(at-at.Down()))
}

// mapFile is a symbolic link that leads to the file of a mapping.
func mapFile(pid int, r page.Range) string {
	return fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, uint64(r.Start), uint64(r.End))
}

// seals are those of a memory file. All that memfd_create makes without
// flags have F_SEAL_SEAL alone.
func (o *object) seals() (seals int, ok bool) {
	fd, err := o.open()
	if err != nil {
		return 0, false // the content cannot be read either, which will be told
	}
	defer unix.Close(fd)
	seals, err = unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	return seals, err == nil
}

// describeDeleted takes the content of a file without a name into the image.
func (c *capture) describeDeleted(d *descriptor, o *Open) error {
	o.Kind, o.Size = OpenDeleted, uint64(d.stat.Size)
	if d.stat.Nlink > 0 && d.writes() {
		c.refused.add(d.String(), "the file has lost this name, and has another: what is written to it would be two files' after a restore", "close it for the checkpoint")
	}
	kind, err := c.fileSystem(d.stat.Dev, d.self)
	if err != nil {
		return err
	}
	if ofKernel(kind) {
		c.refused.add(d.String(), "it was a file of the kernel's own, which is gone", "close it for the checkpoint")
		return nil
	}
	obj := c.object(objectID{d.stat.Dev, d.stat.Ino}, d.link, d.self, &d.stat)
	obj.descriptors++
	o.Shared = obj.index + 1
	if !ofMemory(kind) {
		c.st.Shared[obj.index].More.Dir = filepath.Dir(d.link)
	}
	return nil
}

// sharedObject makes an object's memory anew: with its content, where that has
// to be there from the start, else empty. It is not needed, -1, where the
// object is a file that has a name.
func (r *reopener) sharedObject(s *SharedObject, id uint32) (int, error) {
	if s.More.Path != "" {
		return -1, r.memoryFile(s, id)
	}
	fd, err := r.newObject(s)
	if err != nil {
		return -1, fmt.Errorf("make the memory of %s: %w", s.Name, err)
	}
	if err := r.fillObject(fd, s, id); err != nil {
		return -1, err
	}
	return fd, nil
}

// ownedAndSealed gives an object its owner, mode and seals, once it has been opened by all
// descriptions: its mode may forbid that to who made it.
func (r *reopener) ownedAndSealed(fd int, s *SharedObject) error {
	if m := &s.More; m.Mode != 0 {
		if err := r.giveAway(fd, m); err != nil {
			return fmt.Errorf("the memory of %s: %w", s.Name, err)
		}
	}
	if seals := s.More.seals(); seals != 0 && !s.More.sealsLate() { // behind the mode, on which they depend
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
			return fmt.Errorf("seal the memory of %s: %w", s.Name, err)
		}
	}
	return nil
}

// newObject makes an empty file without a name: on the disk it was on, if that
// can be, else in memory.
func (r *reopener) newObject(s *SharedObject) (int, error) {
	if s.More.Dir != "" && !s.Lazy {
		fd, err := unix.Open(s.More.Dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
		if err == nil {
			return r.raise(fd)
		}
		r.warnings = append(r.warnings, fmt.Sprintf("the file %s, which has no name any more, is in memory now: %s: %v", s.Name, s.More.Dir, err))
	}
	flags := 0
	if s.More.Seals != 0 {
		flags = unix.MFD_ALLOW_SEALING
	}
	fd, err := proc.MemFDExec(s.Name[:min(len(s.Name), maxMemFDName)], flags)
	if err != nil {
		return -1, err
	}
	return r.raise(fd)
}

// maxMemFDName is the most that memfd_create(2) takes. A file that had a name may have had a longer one, of which nobody is left to ask.
const maxMemFDName = 249

// giveAway sets owner and mode. Who may not give files away, or is in a user namespace that
// does not have the owner's id, keeps them; then they do not run as their owner.
func (r *reopener) giveAway(fd int, m *More) error {
	mode := m.Mode & 0o7777
	if err := unix.Fchown(fd, int(m.UID), int(m.GID)); errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
		mode &^= unix.S_ISUID | unix.S_ISGID
	} else if err != nil {
		return os.NewSyscallError("chown", err)
	}
	return os.NewSyscallError("chmod", unix.Fchmod(fd, mode))
}

func (m *More) seals() int {
	if m.Seals == 0 {
		return 0
	}
	return int(m.Seals - 1)
}

// sealsLate reports whether mappings have to be made before the seals: those
// that may be written, which the seal forbids for the future only.
func (m *More) sealsLate() bool {
	return m.seals()&(unix.F_SEAL_FUTURE_WRITE|unix.F_SEAL_WRITE) == unix.F_SEAL_FUTURE_WRITE
}

// lateSeals plans the seals that come after the mappings.
func (b *builder) lateSeals(t *table) {
	for i := range b.st.Shared {
		if s := &b.st.Shared[i]; s.More.sealsLate() {
			t.call("seal", unix.SYS_FCNTL, uint64(b.re.shared[i]), unix.F_ADD_SEALS, uint64(s.More.seals())).on(s.Name)
		}
	}
}

func (r *reopener) fillObject(fd int, s *SharedObject, id uint32) error {
	if err := unix.Ftruncate(fd, int64(s.Size)); err != nil {
		return fmt.Errorf("give %s its %d bytes: %w", s.Name, s.Size, err)
	}
	return r.eachEager(s, id, func(at, off, n int64) error {
		if err := r.copyEager(fd, s, at, off, n); err != nil || at+n != int64(s.Size) {
			return err
		}
		tail := make([]byte, page.Addr(s.Size).Up()-page.Addr(s.Size))
		if _, err := r.opts.Eager.ReadAt(tail, off+n); errors.Is(err, io.EOF) {
			return damagedEager(io.ErrUnexpectedEOF)
		} else if err != nil {
			return fmt.Errorf("read the content of %s: %w", s.Name, err)
		}
		return putBehindEnd(fd, page.Addr(s.Size), tail)
	})
}

// eachEager calls f for each run of an object's content that eager.raw has:
// where it is in the object, where in eager.raw, and how much.
func (r *reopener) eachEager(s *SharedObject, id uint32, f func(at, off, n int64) error) error {
	var off int64
	for _, e := range r.st.Eager {
		if e.Shared == id {
			n := int64(e.Len())
			if over := int64(e.End) - int64(s.Size); over > 0 {
				n -= over // the object ends within its last page
			}
			if err := f(int64(e.Start), off, n); err != nil {
				return err
			}
		}
		off += int64(e.Len())
	}
	return nil
}

func (r *reopener) copyEager(fd int, s *SharedObject, at, off, left int64) error {
	if r.opts.Eager == nil {
		return damagedEager(errMissing)
	}
	if _, err := unix.Seek(fd, at, unix.SEEK_SET); err != nil {
		return err
	}
	for left > 0 {
		n, err := unix.Sendfile(fd, int(r.opts.Eager.Fd()), &off, int(min(left, 1<<30)))
		if err == nil && n == 0 {
			return damagedEager(io.ErrUnexpectedEOF)
		}
		if err != nil {
			return fmt.Errorf("read the content of %s: %w", s.Name, err)
		}
		left -= int64(n)
	}
	return nil
}

// deleted opens an object's memory a further time, with its own offset.
func (r *reopener) deleted(o *Open) (int, error) {
	path := "/proc/self/fd/" + strconv.Itoa(r.shared[o.Shared-1])
	fd, err := unix.Open(path, int(reopenFlags(o.Flags)&^unix.O_NOFOLLOW), 0)
	if err != nil {
		return -1, fmt.Errorf("open the memory of %s: %w", o.Path, err)
	}
	if fd, err = r.raise(fd); err != nil {
		return -1, err
	}
	return fd, seek(fd, o)
}
