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

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// ErrNoPredecessor means that a process is no keeper of a pager that served
// the target.
var ErrNoPredecessor = errors.New("no pager to take over from")

// Resume is Serve in the place of a pager that was killed, or whose Serve
// returned early: keeper is the id of the keeper that it left, which ends
// once everything is taken over. The image has to be the one that the
// predecessor had. What it had installed stays; the threads that wait are
// woken, and those whose page is still missing fault again, this time to us.
//
// A target with Pid 0 stands for whatever that keeper's pager served.
//
// Nothing is changed if the error wraps ErrNoPredecessor; else see Serve.
func (p *Pager) Resume(ctx context.Context, keeper int, target Target) error {
	if err := p.TakeOver(keeper, target); err != nil {
		return err
	}
	return p.serve(ctx)
}

// TakeOver is the first half of Resume: afterwards the keeper is not needed
// any more, and ServeAttached does the rest.
func (p *Pager) TakeOver(keeper int, target Target) error {
	pidfd, err := unix.PidfdOpen(keeper, 0)
	if err != nil {
		return fmt.Errorf("pager: open keeper %d: %w: %w", keeper, ErrNoPredecessor, os.NewSyscallError("pidfd_open", err))
	}
	defer func() { _ = unix.Close(pidfd) }()
	w, err := inherit(keeper, pidfd, target)
	if err != nil {
		return fmt.Errorf("pager: %w", err)
	}
	fds := make([]*uffd.FD, 0, len(w.spaces))
	for _, m := range w.spaces {
		if m.fd, err = unix.PidfdGetfd(pidfd, m.fd, 0); err != nil {
			return fmt.Errorf("pager: take over the userfaultfd of space %d: %w", m.id, os.NewSyscallError("pidfd_getfd", err))
		}
		fds = append(fds, uffd.FromFD(m.fd))
	}
	if err := p.attach(w, fds, target); err != nil {
		return err
	}
	// From here on all that it kept is safe with us.
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil {
		return fmt.Errorf("pager: end keeper %d: %w", keeper, os.NewSyscallError("pidfd_send_signal", err))
	}
	for _, u := range fds {
		if err := u.Wake(lowestAddr, uint64(userEnd)-lowestAddr); err != nil {
			return fmt.Errorf("pager: wake who waits: %w", err)
		}
	}
	return nil
}

// A Held is a process that a pager which was killed had written down, and its
// userfaultfd in the keeper's table of descriptors.
type Held struct {
	Pid int // 0 for a forked child
	FD  int
}

// Left lists what there is to take over from a keeper; see Resume.
func Left(keeper int) ([]Held, error) {
	pidfd, err := unix.PidfdOpen(keeper, 0)
	if err != nil {
		return nil, fmt.Errorf("pager: open keeper %d: %w: %w", keeper, ErrNoPredecessor, os.NewSyscallError("pidfd_open", err))
	}
	defer func() { _ = unix.Close(pidfd) }()
	w, err := inherit(keeper, pidfd, Target{})
	if err != nil {
		return nil, fmt.Errorf("pager: %w", err)
	}
	var list []Held
	for _, m := range w.spaces {
		list = append(list, Held{m.pid, m.fd})
	}
	return list, nil
}

// EndKeeper ends the keeper of a pager that was killed. All that it holds is to be held
// by another: else the memory of its processes that is missing becomes zeros. The error wraps
// ErrNoPredecessor if the process is no keeper.
func EndKeeper(keeper int) error {
	pidfd, err := unix.PidfdOpen(keeper, 0)
	if err != nil {
		return fmt.Errorf("pager: open keeper %d: %w: %w", keeper, ErrNoPredecessor, os.NewSyscallError("pidfd_open", err))
	}
	defer func() { _ = unix.Close(pidfd) }()
	name, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(keeper), "comm"))
	if err != nil || strings.TrimSuffix(string(name), "\n") != keeperName {
		return fmt.Errorf("pager: end keeper %d: %w: it is %q", keeper, ErrNoPredecessor, name)
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("pager: end keeper %d: %w", keeper, os.NewSyscallError("pidfd_send_signal", err))
	}
	return nil
}

// lowestAddr is above what vm.mmap_min_addr keeps free by default.
const lowestAddr = 0x10000

// inherit finds the state of the pager that served target among the keeper's
// descriptors, and replays it.
func inherit(keeper, pidfd int, target Target) (*world, error) {
	dir := filepath.Join("/proc", strconv.Itoa(keeper), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look for the state of the pager: %w: %w", ErrNoPredecessor, err)
	}
	var damage error
	for _, e := range entries {
		name, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || !strings.HasPrefix(name, "/memfd:"+stateName) {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		w, err := inheritState(pidfd, fd)
		if err != nil {
			damage = err
			continue
		}
		w.spaces = slices.DeleteFunc(w.spaces, func(m *model) bool { return m.fd < 0 }) // they never came
		if len(w.spaces) > 0 && (target.Pid == 0 || w.spaces[0].pid == target.Pid) {
			return w, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("%w: process %d has no state for process %d", ErrNoPredecessor, keeper, target.Pid), damage)
}

// inheritState replays the state that the keeper has as descriptor fd.
func inheritState(pidfd, fd int) (*world, error) {
	own, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return nil, fmt.Errorf("take over the pager's state: %w", os.NewSyscallError("pidfd_getfd", err))
	}
	defer func() { _ = unix.Close(own) }()
	var st unix.Stat_t
	if err := unix.Fstat(own, &st); err != nil {
		return nil, fmt.Errorf("take over the pager's state: %w", os.NewSyscallError("fstat", err))
	}
	if st.Size < page.Size {
		return nil, errState
	}
	b, err := unix.Mmap(own, 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("take over the pager's state: %w", os.NewSyscallError("mmap", err))
	}
	defer func() { _ = unix.Munmap(b) }()
	return replay(b)
}
