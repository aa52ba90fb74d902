package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

const atFDCWD = 0xffffffffffffff9c // AT_FDCWD, sign-extended

// reopener makes the open file descriptions of a process anew, here, where
// each failure can be told in words; the process inherits them and only has to
// put them into their places. All of them have numbers from low upwards, above
// every number that the process itself uses.
type reopener struct {
	st       *State
	opts     *RebuildOptions
	low      int
	refused  reasons
	warnings []string

	owned  []int // descriptors to close when the process has them
	opens  []int // of State.Opens
	shared []int // of State.Shared
	pipes  map[uint64]*pipeEnds
}

// lowest is the first descriptor number that the process does not use.
func lowest(st *State) int {
	low := 3
	for _, f := range st.FDs {
		low = max(low, f.Num+1)
	}
	for _, w := range st.Displaced {
		low = max(low, st.Opens[w.Open].Watches[w.Index].FD+1)
	}
	return low
}

// raise moves fd to a number that the process does not use; it will be
// inherited. fd itself is closed.
func (r *reopener) raise(fd int) (int, error) {
	up, err := r.share(fd)
	unix.Close(fd)
	return up, err
}

// share is raise without the closing.
func (r *reopener) share(fd int) (int, error) {
	up, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD, r.low)
	if err != nil {
		return -1, fmt.Errorf("duplicate descriptor %d above %d: %w", fd, r.low, err)
	}
	r.owned = append(r.owned, up)
	return up, nil
}

// close gives up what the process has inherited by now.
func (r *reopener) close() {
	for _, fd := range r.owned {
		unix.Close(fd)
	}
	r.owned = nil
}

func (r *reopener) all(ctx context.Context) error {
	for i := range r.st.Shared {
		fd, err := r.sharedObject(&r.st.Shared[i], uint32(i+1))
		if err != nil {
			return err
		}
		r.shared = append(r.shared, fd)
	}
	for i := range r.st.Opens {
		fd, err := r.open(&r.st.Opens[i], i)
		if err != nil {
			return err
		}
		r.opens = append(r.opens, fd)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if err := r.lock(); err != nil {
		return err
	}
	return r.refused.err()
}

// open makes one description. What cannot be had again is a reason to refuse,
// in r.refused, and gives -1; an error is one of ours.
func (r *reopener) open(o *Open, index int) (int, error) {
	switch o.Kind {
	case OpenFile:
		return r.file(o)
	case OpenDevice:
		return r.device(o)
	case OpenNull:
		return r.path(&Open{Path: "/dev/null"}, o.Flags&unix.O_ACCMODE)
	case OpenPipe:
		return r.pipe(o)
	case OpenEventFD:
		return r.eventFD(o)
	case OpenEpoll:
		return r.raiseNew(unix.EpollCreate1(0))
	case OpenStdio:
		return r.share(int(o.Stdio))
	case OpenDeleted:
		return r.deleted(o)
	case OpenFIFO:
		return r.fifo(o)
	case OpenTimerFD:
		return r.timerFD(o, index)
	case OpenSignalFD:
		return r.signalFD(o)
	case OpenInotify:
		return r.inotify(o, index)
	}
	return -1, fmt.Errorf("%w: descriptor of kind %d", errState, o.Kind)
}

func (r *reopener) raiseNew(fd int, err error) (int, error) {
	if err != nil {
		return -1, err
	}
	return r.raise(fd)
}

// reopenFlags leaves out of a description's flags what would make a file.
// O_TMPFILE, which the kernel keeps in them, holds the bit of O_DIRECTORY.
func reopenFlags(flags uint32) uint32 {
	if flags&unix.O_TMPFILE == unix.O_TMPFILE {
		flags &^= unix.O_TMPFILE
	}
	// O_ASYNC has no effect at an open; see owners.
	return flags &^ (unix.O_CREAT | unix.O_EXCL | unix.O_TRUNC | unix.O_ASYNC)
}

func (r *reopener) path(o *Open, flags uint32) (int, error) {
	fd, err := unix.Open(o.Path, int(reopenFlags(flags))|unix.O_NOCTTY, 0)
	if err != nil {
		r.refused.add(o.Path, "open: "+err.Error(), "put the file back, or make it readable")
		return -1, nil
	}
	return r.raise(fd)
}

// file opens a regular file or a directory where it was and as it was. One
// that is written may have grown since (a log goes on after a checkpoint that
// let the program run); one that is only read must be as it was.
func (r *reopener) file(o *Open) (int, error) {
	fd, err := r.path(o, o.Flags)
	if fd < 0 || err != nil {
		return fd, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, fmt.Errorf("stat %s: %w", o.Path, err)
	}
	if o.Flags&unix.O_PATH != 0 {
		return fd, nil
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		r.compare(&o.File, &st, o.Flags&unix.O_ACCMODE != unix.O_RDONLY)
	}
	return fd, seek(fd, o)
}

// device opens what has no state but its offset.
func (r *reopener) device(o *Open) (int, error) {
	fd, err := r.path(o, o.Flags)
	if fd < 0 || err != nil {
		return fd, err
	}
	return fd, seek(fd, o)
}

func seek(fd int, o *Open) error {
	if o.Offset == 0 {
		return nil
	}
	if _, err := unix.Seek(fd, o.Offset, unix.SEEK_SET); err != nil {
		return fmt.Errorf("seek %s to %d: %w", o.Path, o.Offset, err)
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

// compare looks whether a file is as it was.
func (r *reopener) compare(was *Mapped, is *unix.Stat_t, written bool) {
	var why string
	switch {
	case is.Size < was.Size:
		why = fmt.Sprintf("it is shorter than it was: %d bytes instead of %d", is.Size, was.Size)
	case written && is.Size > was.Size:
		r.warnings = append(r.warnings, fmt.Sprintf("%s has grown from %d to %d bytes; the program goes on at its old offset", was.Path, was.Size, is.Size))
		return
	case written:
		return
	case is.Size > was.Size:
		why = fmt.Sprintf("it is longer than it was: %d bytes instead of %d", is.Size, was.Size)
	case is.Mtim.Nano() != was.MTime:
		why = "it was changed after the checkpoint"
	default:
		return
	}
	if r.opts.ChangedFiles == ChangedWarn {
		r.warnings = append(r.warnings, was.Path+": "+why)
		return
	}
	r.refused.add(was.Path, why, "put the old file back, or accept it with --changed-files=warn")
}

// sharedObject makes an object's memory anew: with its content, where that has
// to be there from the start, else empty.
func (r *reopener) sharedObject(s *SharedObject, id uint32) (int, error) {
	fd, err := r.raiseNew(unix.MemfdCreate(s.Name, 0))
	if err != nil {
		return -1, fmt.Errorf("make the memory of %s: %w", s.Name, err)
	}
	if err := unix.Ftruncate(fd, int64(s.Size)); err != nil {
		return -1, fmt.Errorf("give %s its %d bytes: %w", s.Name, s.Size, err)
	}
	var off int64
	for _, e := range r.st.Eager {
		if e.Shared == id {
			if err := r.copyEager(fd, s, e, off); err != nil {
				return -1, err
			}
		}
		off += int64(e.Len())
	}
	return fd, nil
}

func (r *reopener) copyEager(fd int, s *SharedObject, e Eager, off int64) error {
	if _, err := unix.Seek(fd, int64(e.Start), unix.SEEK_SET); err != nil {
		return err
	}
	left := int64(e.Len())
	if over := int64(e.End) - int64(s.Size); over > 0 {
		left -= over // the object ends within its last page
	}
	for left > 0 {
		n, err := unix.Sendfile(fd, int(r.opts.Eager.Fd()), &off, int(min(left, 1<<30)))
		if err == nil && n == 0 {
			err = errors.New("eager.raw ends too early")
		}
		if err != nil {
			return fmt.Errorf("read the content of %s: %w", s.Name, err)
		}
		left -= int64(n)
	}
	return nil
}

// mappedFiles looks whether the files that the process maps are as they were.
// It runs beside the building of the process, which maps them by name.
func (r *reopener) mappedFiles() {
	written := make([]bool, len(r.st.Files))
	for i := range r.st.VMAs {
		if v := &r.st.VMAs[i]; v.Kind == SharedFile && v.Write {
			written[v.File] = true
		}
	}
	for i := range r.st.Files {
		f := &r.st.Files[i]
		var st unix.Stat_t
		if err := unix.Stat(f.Path, &st); err != nil {
			r.refused.add(f.Path, "it is mapped, and stat says: "+err.Error(), "put the file back")
			continue
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			r.refused.add(f.Path, "it is mapped, and it is no regular file any more", "put the file back")
			continue
		}
		r.compare(f, &st, written[i])
	}
}

// place plans how the inherited descriptors come to their numbers.
func (b *builder) descriptors(t *table) {
	b.displacedWatches(t)
	for _, f := range b.st.FDs {
		flags := uint64(0)
		if f.CloExec {
			flags = unix.O_CLOEXEC
		}
		t.call("place descriptor", unix.SYS_DUP3, uint64(b.re.opens[f.Open]), uint64(f.Num), flags).on(strconv.Itoa(f.Num)).returns(uint64(f.Num))
	}
	b.watches(t)
}

// eagerFile is eager.raw as the process can read it.
func (r *reopener) eagerFile(f *os.File) (int, error) {
	if f == nil {
		return -1, nil
	}
	// The process would read less than it needs, and then wait for ever for a
	// page that nobody brings.
	info, err := f.Stat()
	if err != nil {
		return -1, err
	}
	if uint64(info.Size()) < r.st.EagerBytes || !info.Mode().IsRegular() {
		return -1, &image.DamagedError{Object: image.EagerObject, Err: fmt.Errorf("%d bytes instead of %d", info.Size(), r.st.EagerBytes)}
	}
	return r.share(int(f.Fd()))
}
