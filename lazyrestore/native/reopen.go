package native

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const atFDCWD = 0xffffffffffffff9c // AT_FDCWD, sign-extended

// reopener makes the open file descriptions of a process anew, here, where
// each failure can be told in words; the process inherits them and only has to
// put them into their places. All of them have numbers that the process itself
// does not use.
type reopener struct {
	st       *State
	opts     *RebuildOptions
	places   *places
	refused  reasons
	warnings []string

	owned    []int      // descriptors to close when the process has them
	opens    []int      // of State.Opens
	shared   []int      // of State.Shared
	files    []objectID // of those that are lazy
	pipes    map[uint64]*pipeEnds
	contents map[uint64]*Open // of pipes
	sockets  map[uint32]int   // by description: those of pairs
	made     []string         // files that were not there
	check    bool             // it is only looked whether all could be had
	asWere   map[string]bool  // files that are as they were, whatever their times say
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
	up, err := r.places.dup(fd)
	if err != nil {
		return -1, err
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
	r.lostTerminal()
	r.mapCount()
	r.fitsSpace()
	r.places.reserve(len(r.st.Opens) + len(r.st.Shared) + 8) // a few are the restore's own
	for i := range r.st.Shared {
		fd, err := r.sharedObject(&r.st.Shared[i], uint32(i+1))
		if err != nil {
			return err
		}
		r.shared = append(r.shared, fd)
		var file unix.Stat_t
		if r.st.Shared[i].Lazy && fd >= 0 {
			if err := unix.Fstat(fd, &file); err != nil {
				return os.NewSyscallError("fstat", err)
			}
		}
		r.files = append(r.files, objectID{file.Dev, file.Ino})
	}
	for i := range r.st.Opens {
		fd, err := r.open(&r.st.Opens[i], i)
		if err != nil {
			return err
		}
		r.opens = append(r.opens, fd)
		if err := context.Cause(ctx); err != nil {
			return err
		}
	}
	for i, fd := range r.shared {
		if fd < 0 {
			continue
		}
		if err := r.ownedAndSealed(fd, &r.st.Shared[i]); err != nil {
			return err
		}
	}
	r.spareEnds()
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
	case OpenSocket:
		return r.socket(o, index)
	case OpenTerminal:
		return r.openTerminal(o)
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
		how := onlyRead
		if o.Flags&unix.O_ACCMODE != unix.O_RDONLY {
			how = isWritten
		}
		r.compare(&o.File, &st, how)
	}
	return fd, seek(fd, o)
}

// device opens what has no state but its offset. What the process opens itself has its
// place kept.
func (r *reopener) device(o *Open) (int, error) {
	if r.st.aboutItself(o) {
		return r.path(&Open{Path: "/dev/null"}, unix.O_RDONLY)
	}
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

// use says what a file is for.
type use uint8

const (
	onlyRead    use = iota
	isWritten       // through descriptors
	isMappedOut     // through a shared mapping
)

// compare looks whether a file is as it was. One that is written may have
// grown; what is mapped may not have changed.
func (r *reopener) compare(was *Mapped, is *unix.Stat_t, how use) {
	sameTime := is.Mtim.Nano() == was.MTime
	switch {
	case r.asWere[was.Path]:
	case is.Size < was.Size:
		r.changed(was.Path, fmt.Sprintf("it is shorter than it was: %d bytes instead of %d", is.Size, was.Size), "")
	case is.Size > was.Size && how == onlyRead:
		r.changed(was.Path, fmt.Sprintf("it is longer than it was: %d bytes instead of %d", is.Size, was.Size), "")
	case is.Size > was.Size:
		r.warnings = append(r.warnings, fmt.Sprintf("%s has grown from %d to %d bytes; the program goes on at its old offset, or at the end if it appends", was.Path, was.Size, is.Size))
	case sameTime:
	case how == isWritten:
		r.warnings = append(r.warnings, was.Path+": it was written after the checkpoint; the program finds it as it is now")
	default:
		r.changed(was.Path, "it was changed after the checkpoint", "")
	}
}

// changed refuses a file that is not as it was, unless the user has it so.
func (r *reopener) changed(path, why, help string) {
	if r.opts.ChangedFiles == ChangedWarn {
		r.warnings = append(r.warnings, path+": "+why)
		return
	}
	r.refused.add(path, why, cmp.Or(help, "put the old file back, or accept it with --changed-files=warn"))
}

// mappedFiles looks whether the files that the process maps are as they were.
// It runs beside the building of the process, which maps them by name.
func (r *reopener) mappedFiles() {
	uses := make([]use, len(r.st.Files))
	for i := range r.st.VMAs {
		if v := &r.st.VMAs[i]; v.Kind == SharedFile && v.Write {
			uses[v.File] = isMappedOut
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
		r.compare(f, &st, uses[i])
	}
}

// descriptors plans how the inherited descriptors come to their numbers.
func (b *builder) descriptors(t *table) {
	b.displacedWatches(t)
	for _, f := range b.st.FDs {
		b.place(t, uint64(b.re.opens[f.Open]), f)
		b.enough(t)
	}
}

// place plans that f becomes what fd is.
func (b *builder) place(t *table, fd uint64, f FD) {
	flags := uint64(0)
	if f.CloExec {
		flags = unix.O_CLOEXEC
	}
	t.call("place descriptor", unix.SYS_DUP3, fd, uint64(f.Num), flags).on(strconv.Itoa(f.Num)).returns(uint64(f.Num))
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
		return -1, damagedEager(fmt.Errorf("%d bytes instead of %d", info.Size(), r.st.EagerBytes))
	}
	return r.share(int(f.Fd()))
}
