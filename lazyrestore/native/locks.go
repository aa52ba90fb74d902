package native

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Lock is a file lock or a lease that is held through the description with
// index Open.
type Lock struct {
	Open  uint32
	Kind  LockKind
	Write bool   // exclusive, else shared
	Start uint64 // bytes; of LockPOSIX and LockOFD
	Len   uint64 // 0: to the end of the file, however long it gets
}

// LockKind says whose a lock is and how it was made.
type LockKind uint8

// Kinds of lock.
const (
	LockFlock LockKind = iota // flock(2): the description's
	LockPOSIX                 // fcntl(F_SETLK): the process's
	LockOFD                   // fcntl(F_OFD_SETLK): the description's
	LockLease                 // fcntl(F_SETLEASE)
)

// locks notes what the kernel tells of locks through d's description.
func (c *capture) locks(d *descriptor) {
	for _, line := range d.info.Locks {
		l, err := parseLock(line)
		if err != nil {
			c.refused.add(d.String(), "it holds a file lock that is not preserved: "+line, "unlock it for the checkpoint")
			continue
		}
		l.Open = d.open
		c.st.Locks = append(c.st.Locks, l)
	}
}

// parseLock reads a line of lock_get_status in the kernel's fs/locks.c:
//
//	1: POSIX  ADVISORY  WRITE 15783 fe:00:9978019 5 14
func parseLock(line string) (Lock, error) {
	f := strings.Fields(line)
	var l Lock
	if len(f) != 8 {
		return l, errors.New("not eight fields")
	}
	want := "ADVISORY"
	switch f[1] {
	case "FLOCK":
		l.Kind = LockFlock
	case "POSIX":
		l.Kind = LockPOSIX
	case "OFDLCK":
		l.Kind = LockOFD
	case "LEASE":
		l.Kind, want = LockLease, "ACTIVE"
	default:
		return l, errors.New("an unknown kind")
	}
	if f[2] != want || f[3] != "READ" && f[3] != "WRITE" {
		return l, errors.New("an unknown state")
	}
	l.Write = f[3] == "WRITE"
	start, err := strconv.ParseUint(f[6], 10, 63)
	if err != nil {
		return l, err
	}
	l.Start = start
	if f[7] == "EOF" {
		return l, nil
	}
	end, err := strconv.ParseUint(f[7], 10, 63)
	if err != nil || end < start {
		return l, errors.New("an end before the start")
	}
	l.Len = end - start + 1
	return l, nil
}

// lock takes the locks that belong to descriptions. What somebody else has
// locked by now is a reason to refuse.
func (r *reopener) lock() error {
	for i := range r.st.Locks {
		l := &r.st.Locks[i]
		fd := r.opens[l.Open]
		if fd < 0 || r.st.aboutItself(&r.st.Opens[l.Open]) {
			continue // refused already; or /dev/null in the place of a file that the process opens, and locks
		}
		var err error
		switch l.Kind {
		case LockFlock:
			how := l.flock()
			// Only to see whether it can be had: the kernel notes who takes it.
			if err = unix.Flock(fd, how|unix.LOCK_NB); err == nil {
				err = unix.Flock(fd, unix.LOCK_UN)
			}
		case LockOFD:
			err = unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: l.fcntl(), Start: int64(l.Start), Len: int64(l.Len)})
		case LockPOSIX:
			// The process takes it. Whether it can is seen here.
			probe := unix.Flock_t{Type: l.fcntl(), Start: int64(l.Start), Len: int64(l.Len)}
			if err = unix.FcntlFlock(uintptr(fd), unix.F_GETLK, &probe); err == nil && probe.Type != unix.F_UNLCK {
				err = unix.EAGAIN
			}
		case LockLease:
		}
		switch {
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES):
			r.refused.add(r.st.Opens[l.Open].Path, "the program had it locked, and now somebody else has", "end whoever has it locked")
		case err != nil:
			return fmt.Errorf("lock %s: %w", r.st.Opens[l.Open].Path, err)
		}
	}
	return nil
}

func (l *Lock) fcntl() int16 {
	if l.Write {
		return unix.F_WRLCK
	}
	return unix.F_RDLCK
}

func (l *Lock) flock() int {
	if l.Write {
		return unix.LOCK_EX
	}
	return unix.LOCK_SH
}

// descriptionLocks plans the locks and leases that belong to descriptions, of
// which the kernel says that the process has taken them.
func (b *builder) descriptionLocks(t *table) {
	for i := range b.st.Locks {
		l := &b.st.Locks[i]
		fd, ok := b.numberOf(l.Open)
		if !ok {
			continue // the caller's own has taken its place
		}
		path := b.st.Opens[l.Open].Path
		switch l.Kind {
		case LockLease:
			t.call("take a lease on", unix.SYS_FCNTL, fd, unix.F_SETLEASE, uint64(l.fcntl())).on(path)
		case LockFlock:
			t.call("lock", unix.SYS_FLOCK, fd, uint64(l.flock()|unix.LOCK_NB)).on(path)
		case LockPOSIX, LockOFD:
		}
	}
}

// recordLocks plans the locks that are the process's own. It would lose them
// with the first descriptor of such a file that it closes.
func (b *builder) recordLocks(t *table) {
	for i := range b.st.Locks {
		l := &b.st.Locks[i]
		if l.Kind != LockPOSIX {
			continue
		}
		// struct flock: type and whence, start, length, process
		arg := b.prog.words(uint64(l.fcntl()), l.Start, l.Len, 0)
		fd, ok := b.numberOf(l.Open)
		if !ok {
			continue
		}
		t.call("lock", unix.SYS_FCNTL, fd, unix.F_SETLK, arg).on(b.st.Opens[l.Open].Path)
	}
}

// numberOf is a descriptor of the process for a description.
func (b *builder) numberOf(open uint32) (num uint64, ok bool) {
	for _, f := range b.st.FDs {
		if f.Open == open {
			return uint64(f.Num), true
		}
	}
	return 0, false
}

func (st *State) validLocks() error {
	for _, l := range st.Locks {
		if uint64(l.Open) >= uint64(len(st.Opens)) || l.Kind > LockLease || l.Start+l.Len > 1<<63 {
			return fmt.Errorf("a lock of kind %d on description %d", l.Kind, l.Open)
		}
	}
	return nil
}
