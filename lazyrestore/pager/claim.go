package pager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A state is one process's at a time: of the pager that writes it, or of who takes over from that. They have it locked
// by flock(2). The lock is of a file description of its own that is mapped, and has no descriptor: the keeper would have
// that too, and with it the lock, for as long as it lives. What is mapped ends with the process, once no thread
// of it does anything any more.
//
// A keeper that is ended still has what it held until it has run once more, which may be
// long where processors are short, or its control group is frozen. Meanwhile its successor
// serves, and changes are told to that one alone. So a state says itself that it has been taken over.

// ErrTaken is why nobody can take over from a keeper whose state says that another pager has, which may
// have been killed since: what the keeper still holds is out of date.
var ErrTaken = errors.New("it has been taken over from")

// ErrServed is why nobody can take over from a keeper whose pager serves, or from which another process takes over. Nothing
// is changed.
var ErrServed = errors.New("it is not left")

// errLocked means that another process has a state.
var errLocked = errors.New("the pager's state is locked")

// lockPatience is how long it is waited for a process to end that has a state: a pager that was killed just now may still
// do what it was at, and gives all its memory back.
const lockPatience = 2 * time.Second

// lockMap locks the state at path until what it returns is unmapped: the first n bytes of it, or all if n is zero.
func lockMap(path string, n, flags int) ([]byte, error) {
	// As path may lead to anything: without waiting, nor for a terminal of our own.
	file, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open the pager's state: %w", err)
	}
	defer func() { _ = unix.Close(file) }()
	switch err := unix.Flock(file, unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil, errLocked
	case err != nil:
		return nil, fmt.Errorf("lock the pager's state: %w", os.NewSyscallError("flock", err))
	}
	if n == 0 {
		var st unix.Stat_t
		if err := unix.Fstat(file, &st); err != nil {
			return nil, os.NewSyscallError("fstat", err)
		}
		if st.Size < headerBytes {
			return nil, errState
		}
		n = int(st.Size)
	}
	b, err := unix.Mmap(file, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|flags)
	if err != nil {
		return nil, fmt.Errorf("map the pager's state: %w", os.NewSyscallError("mmap", err))
	}
	// A child, as another keeper is, has it not even for a moment.
	if err := unix.Madvise(b, unix.MADV_DONTFORK); err != nil {
		_ = unix.Munmap(b)
		return nil, os.NewSyscallError("madvise", err)
	}
	return b, nil
}

// A leftState is a state of a pager that has left, locked.
type leftState struct {
	fd  int // the keeper's
	mem []byte
}

// claim notes that the state has been taken over. It needs nothing that could be wanting. What was taken over is to be
// written down elsewhere already.
func (s *leftState) claim() { atomic.StoreUint64(word(s.mem, takenOffset), uint64(os.Getpid())) }

// replay is the world that s holds; errState is also for a state of another keeper's: our own has one open for a
// moment when it is looked into.
func (s *leftState) replay() (*world, error) {
	w, err := replay(s.mem)
	if err == nil && order64.Uint64(s.mem[fileOffset:]) != uint64(s.fd) {
		return nil, fmt.Errorf("%w: it is that of another keeper", errState)
	}
	return w, err
}

// lock locks all states that the keeper has, until Close, or enough of them. For a process that has one it waits a while;
// if it has it still, served says who that is.
func (k *Leftover) lock(ctx context.Context, enough func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	for {
		if err := k.tryLock(); err != nil || enough() || k.served == nil {
			return err
		}
		if sleep(ctx, time.Millisecond) != nil {
			break
		}
	}
	if err := context.Cause(ctx); !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// tryLock is lock without a wait. What is locked stays so.
func (k *Leftover) tryLock() error {
	k.served = nil
	dir := filepath.Join("/proc", strconv.Itoa(k.pid), "fd")
	entries, err := os.ReadDir(dir)
	if hasGone(err) {
		err = fmt.Errorf("%w: %w", ErrNoPredecessor, err)
	}
	if err != nil {
		return fmt.Errorf("look for the state of the pager: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		name, err := os.Readlink(path)
		if err != nil && !hasGone(err) {
			return fmt.Errorf("look for the state of the pager: %w", err)
		}
		fd, notNumber := strconv.Atoi(e.Name())
		if !strings.HasPrefix(name, "/memfd:"+stateName) || notNumber != nil || slices.ContainsFunc(k.states, func(s leftState) bool { return s.fd == fd }) {
			continue
		}
		switch mem, err := lockMap(path, 0, 0); {
		case err == nil:
			k.states = append(k.states, leftState{fd, mem})
		case errors.Is(err, errLocked):
			k.served = k.whoServes()
		case hasGone(err), errors.Is(err, errState):
		default:
			return err
		}
	}
	return k.lives() // or they were another's
}

// unlock gives up the states.
func (k *Leftover) unlock() {
	for _, s := range k.states {
		_ = unix.Munmap(s.mem)
	}
	k.states, k.found, k.served = nil, nil, nil
}

// whoServes is the error about a state that another process has.
func (k *Leftover) whoServes() error {
	stat, err := proc.ReadStat(k.pid)
	if err != nil || k.isOrphan() {
		return fmt.Errorf("%w: another process takes over from it", ErrServed)
	}
	return fmt.Errorf("%w: its pager, process %d, serves", ErrServed, stat.PPID)
}
