package pager

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A keeper that is ended still has what it held until it has run once more, which may be
// long where processors are short, or its control group is frozen. Meanwhile its successor
// serves, and changes are told to that one alone. So a state says itself that it has been taken over.

// ErrTaken is why nobody can take over from a keeper whose state says that another pager has, which may
// have been killed since: what the keeper still holds is out of date.
var ErrTaken = errors.New("another pager has taken it over")

// claim notes that in the state which inherit has found, and reports whether it was the first to do so. It needs
// nothing that could be wanting. What was taken over is to be written down elsewhere already.
func (k *Leftover) claim() bool {
	return atomic.CompareAndSwapUint64(word(k.header, takenOffset), 0, 1)
}

// claimAll notes it in each state that the keeper has, unless that has ended.
func (k *Leftover) claimAll() error {
	err := k.eachState(func(fd int) (enough bool, err error) {
		if _, err = k.state(fd); isNone(err) {
			err = nil
		}
		if k.header != nil {
			k.claim()
		}
		return false, err
	})
	if isNone(err) {
		return nil
	}
	return err
}

// isNone reports whether err of state says that nobody can go on from it; or it was closed.
func isNone(err error) bool {
	return errors.Is(err, errState) || errors.Is(err, ErrTaken) || errors.Is(err, ErrNoPredecessor)
}

// eachState calls f for each state among the keeper's descriptors, until that has enough.
func (k *Leftover) eachState(f func(fd int) (enough bool, err error)) error {
	dir := filepath.Join("/proc", strconv.Itoa(k.pid), "fd")
	entries, err := os.ReadDir(dir)
	if hasGone(err) {
		err = fmt.Errorf("%w: %w", ErrNoPredecessor, err)
	}
	if err != nil {
		return fmt.Errorf("look for the state of the pager: %w", err)
	}
	for _, e := range entries {
		name, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil && !hasGone(err) {
			return fmt.Errorf("look for the state of the pager: %w", err)
		}
		if !strings.HasPrefix(name, "/memfd:"+stateName) {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if enough, err := f(fd); enough || err != nil {
			return err
		}
	}
	return nil
}

// state replays the state that the keeper has as descriptor fd, and keeps its header for claim.
func (k *Leftover) state(fd int) (*world, error) {
	k.forget()
	own, err := k.take(fd)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(own) }()
	var st unix.Stat_t
	if err := unix.Fstat(own, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if st.Size < page.Size {
		return nil, errState
	}
	b, err := unix.Mmap(own, 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	defer func() { _ = unix.Munmap(b) }()
	if k.header, err = unix.Mmap(own, 0, headerBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		k.header = nil
		return nil, os.NewSyscallError("mmap", err)
	}
	return replay(b)
}

// forget gives up the header of the state that was looked into.
func (k *Leftover) forget() {
	if k.header != nil {
		_ = unix.Munmap(k.header)
		k.header = nil
	}
}
