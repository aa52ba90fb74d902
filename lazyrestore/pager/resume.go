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

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// ErrNoPredecessor means that a process is no keeper of a pager that served
// the target.
var ErrNoPredecessor = errors.New("no pager to take over from")

// Resume is Serve in the place of a pager that was killed, or whose Serve
// returned early: keeper is the id of the keeper that it left, which ends
// once everything is taken over, and with it other keepers that hold the same and whose pager was killed.
// The image has to be the one that the predecessor had. What it had installed stays;
// the threads that wait are woken, and those whose page is still missing fault again, this time to us.
//
// If the predecessor was killed while it let go of the last process, of which nothing is missing, that is done again,
// since nobody else would make ordinary memory of what is still registered.
//
// A target with Pid 0 stands for whatever that keeper's pager served.
//
// A predecessor whose process lives on should close its userfaultfds, but nobody waits because it does not:
// what is let go of is unregistered. Only of children that had been forked before, what has grown in its place unseen is
// not, since they cannot be looked at.
//
// Nothing is changed if the error wraps ErrNoPredecessor, as it does if another has taken over from that keeper, or ErrServed, where
// the predecessor, or another successor, has not ended within two seconds; else see Serve. Two that take over from two keepers
// which hold the same, as one that was killed half-way leaves behind, are for their callers to keep apart.
func (p *Pager) Resume(ctx context.Context, keeper int, target Target) error {
	k, err := OpenLeft(keeper)
	if err != nil {
		return err
	}
	err = p.TakeOver(ctx, k, target)
	k.Close()
	if err != nil {
		return err
	}
	return p.serve(ctx)
}

// TakeOver is the first half of Resume: afterwards the keeper is not needed
// any more, and ServeAttached does the rest. A keeper that ends meanwhile may leave
// a part: that is held then, and written down for a successor if it can be; see Holds.
func (p *Pager) TakeOver(ctx context.Context, k *Leftover, target Target) error {
	fds, err := p.takeAll(ctx, k, target)
	if err != nil {
		return fmt.Errorf("pager: %w", err)
	}
	k.found.claim()
	// All that it kept is safe with us, and nothing has happened since we have written it down.
	if err := k.kill(); err != nil {
		return fmt.Errorf("pager: %w", err)
	}
	for _, u := range fds {
		if err := u.Wake(lowestAddr, uint64(userEnd)-lowestAddr); err != nil {
			return fmt.Errorf("pager: wake who waits: %w", err)
		}
	}
	if err := p.endOthers(); err != nil { // who waits does not wait for that look at all processes
		p.opts.Logger.Warn("it is not known whether other keepers hold the same", "error", err)
	}
	return nil
}

// takeAll takes what the keeper of the pager that served target has of that, and writes it down.
func (p *Pager) takeAll(ctx context.Context, k *Leftover, target Target) ([]*uffd.FD, error) {
	w, err := k.inherit(ctx, target)
	if err != nil {
		return nil, err
	}
	if err := p.haveKeeper(); err != nil {
		return nil, err
	}
	if err := p.opts.Keeper.awaitRun(ctx); err != nil {
		return nil, err
	}
	taken, err := k.takeSpaces(w)
	var fds []*uffd.FD
	if err == nil {
		fds = userfaultfds(taken)
		err = p.attach(w, fds, target)
	}
	if err != nil {
		return nil, p.putBack(k, w, taken, target, err)
	}
	return fds, nil
}

// A taken is the userfaultfd of a space, which a keeper has too.
type taken struct {
	space *model
	u     *uffd.FD
	fd    int // the keeper's
}

func userfaultfds(list []taken) []*uffd.FD {
	fds := make([]*uffd.FD, len(list))
	for i := range list {
		fds[i] = list[i].u
	}
	return fds
}

// takeSpaces takes the userfaultfds of all of w's spaces; with an error it returns
// those that it took.
func (k *Leftover) takeSpaces(w *world) ([]taken, error) {
	list := make([]taken, 0, len(w.spaces))
	for _, m := range w.spaces {
		fd, err := k.takeUserfaultfd(m.fd)
		if err != nil {
			return list, fmt.Errorf("take over the userfaultfd of space %d: %w", m.id, err)
		}
		list = append(list, taken{m, uffd.FromFD(fd), m.fd})
		m.fd, m.taken = fd, true
	}
	return list, nil
}

// takeUserfaultfd is take for a userfaultfd.
func (k *Leftover) takeUserfaultfd(fd int) (int, error) {
	own, err := k.take(fd)
	if err != nil {
		return -1, err
	}
	link, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(own))
	if err == nil && !strings.HasSuffix(link, userfaultfdLink) {
		err = fmt.Errorf("%w: descriptor %d is %s", errState, fd, link)
	}
	if err != nil {
		_ = unix.Close(own)
		return -1, err
	}
	return own, nil
}

// putBack closes what was taken from k in vain because of err, which it returns. What
// k does not have any more may be the last of its kind: it stays open, and is
// attached if it can be, for a successor to serve.
func (p *Pager) putBack(k *Leftover, w *world, list []taken, target Target, err error) error {
	all := len(w.spaces)
	list = slices.DeleteFunc(list, func(t taken) bool { return k.GiveBack(t.u, t.fd) })
	if len(list) == 0 {
		return err
	}
	w.spaces = nil
	for _, t := range list {
		w.spaces = append(w.spaces, t.space)
	}
	fds := userfaultfds(list)
	failed := p.attach(w, fds, target)
	if failed == nil {
		p.leave()
	} else {
		p.Hold(fds...)
		return fmt.Errorf("keeper %d ended while it was taken over from, %d of %d processes are held, and nobody can serve them: %w", k.pid, len(list), all, failed)
	}
	// Not that there is no predecessor: something has changed.
	return fmt.Errorf("keeper %d ended while it was taken over from: %d of %d processes are left, to take over from keeper %d", k.pid, len(list), all, p.opts.Keeper.Pid())
}

// A Leftover refers to the keeper of a pager that was killed, whatever becomes
// of its id. One goroutine at a time may use it.
type Leftover struct {
	pid    int
	pidfd  int
	served error       // whose state is another process's
	states []leftState // those that are ours until Close
	found  *leftState  // the one that inherit has found
}

// OpenLeft refers to keeper until Close. The error wraps ErrNoPredecessor if
// there is no such process.
func OpenLeft(keeper int) (*Leftover, error) {
	pidfd, err := unix.PidfdOpen(keeper, 0)
	switch {
	case err == nil:
		return &Leftover{pid: keeper, pidfd: pidfd}, nil
	case hasGone(err), errors.Is(err, unix.EINVAL): // EINVAL: an id of no process, but a thread
		err = fmt.Errorf("%w: %w", ErrNoPredecessor, os.NewSyscallError("pidfd_open", err))
	default:
		err = os.NewSyscallError("pidfd_open", err)
	}
	return nil, fmt.Errorf("pager: open keeper %d: %w", keeper, err)
}

// Close gives up the reference, and what Held or TakeOver has kept from others.
func (k *Leftover) Close() {
	k.unlock()
	_ = unix.Close(k.pidfd)
}

// Began is Keeper's. The error wraps ErrNoPredecessor if it has ended.
func (k *Leftover) Began() (uint64, error) {
	ticks, err := began(k.pid)
	return ticks, k.sure(err) // it may be another's
}

// Take gives a descriptor of the keeper's, which stays open there, closed on
// exec. The error wraps ErrNoPredecessor if it is not open there, or the keeper
// has ended.
func (k *Leftover) Take(fd int) (int, error) {
	own, err := k.take(fd)
	if err != nil {
		return -1, fmt.Errorf("pager: take descriptor %d of keeper %d: %w", fd, k.pid, err)
	}
	return own, nil
}

func (k *Leftover) take(fd int) (int, error) {
	own, err := unix.PidfdGetfd(k.pidfd, fd, 0)
	switch {
	case err == nil:
		return own, nil
	case hasGone(err), errors.Is(err, unix.EBADF):
		return -1, fmt.Errorf("%w: %w", ErrNoPredecessor, os.NewSyscallError("pidfd_getfd", err))
	}
	return -1, os.NewSyscallError("pidfd_getfd", err)
}

// GiveBack closes u, which was taken from the keeper's descriptor fd, if the keeper
// still has that, and reports whether it did. Else u may be the last of its kind.
func (k *Leftover) GiveBack(u *uffd.FD, fd int) bool {
	again, err := unix.PidfdGetfd(k.pidfd, fd, 0)
	switch {
	case err == nil:
		_ = unix.Close(again)
	case !noRoom(err): // for which it was found before
		return false
	}
	_ = u.Close()
	return true
}

// kill ends the keeper, if it has not ended.
func (k *Leftover) kill() error {
	if err := unix.PidfdSendSignal(k.pidfd, unix.SIGKILL, nil, 0); err != nil && !hasGone(err) {
		return fmt.Errorf("end keeper %d: %w", k.pid, os.NewSyscallError("pidfd_send_signal", err))
	}
	return nil
}

// hasGone reports whether err is of a look for a process, or into it, because that has
// ended. Any other says nothing of it: there may be no descriptor left to look with.
func hasGone(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, proc.ErrNoProcess)
}

// A Held is a process that a pager which was killed had written down, and its
// userfaultfd in the keeper's table of descriptors.
type Held struct {
	Pid int // 0 for a forked child
	FD  int
}

// Held lists what there is to take over from the keeper, and keeps other processes from doing that until Close, also if
// there is nothing. Errors are those of Resume.
func (k *Leftover) Held(ctx context.Context) ([]Held, error) {
	w, err := k.inherit(ctx, Target{})
	if err != nil {
		return nil, fmt.Errorf("pager: %w", err)
	}
	var list []Held
	for _, m := range w.spaces {
		list = append(list, Held{m.pid, m.fd})
	}
	return list, nil
}

// End ends the keeper of a pager that was killed. All that it holds is to be held
// by another: else the memory of its processes that is missing becomes zeros. The error wraps
// ErrNoPredecessor if the process is no keeper.
func (k *Leftover) End(ctx context.Context) error {
	name, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(k.pid), "comm"))
	switch {
	case hasGone(err):
		return fmt.Errorf("pager: end keeper %d: %w: %w", k.pid, ErrNoPredecessor, err)
	case err != nil:
		return fmt.Errorf("pager: end keeper %d: %w", k.pid, err)
	case strings.TrimSuffix(string(name), "\n") != keeperName:
		return fmt.Errorf("pager: end keeper %d: %w: it is %q", k.pid, ErrNoPredecessor, name)
	}
	err = k.lock(ctx, func() bool { return false })
	if err == nil {
		err = k.served
	}
	if err == nil {
		err = k.endAll()
	}
	if err != nil {
		return fmt.Errorf("pager: end keeper %d: %w", k.pid, err)
	}
	return nil
}

// endAll ends the keeper, whose states are locked. None of them is good any more, however late it ends.
func (k *Leftover) endAll() error {
	for i := range k.states {
		k.states[i].claim()
	}
	return k.kill()
}

// lowestAddr is above what vm.mmap_min_addr keeps free by default.
const lowestAddr = 0x10000

// inherit finds the state of the pager that served target among the keeper's
// descriptors, and replays it. It stays locked, as all that the keeper has do if there is none.
func (k *Leftover) inherit(ctx context.Context, target Target) (w *world, err error) {
	var none error
	err = k.lock(ctx, func() bool {
		w, none = k.find(target)
		return w != nil
	})
	switch {
	case err != nil:
		return nil, err
	case w == nil && k.served != nil:
		return nil, fmt.Errorf("keeper %d: %w", k.pid, k.served)
	}
	return w, none
}

// find looks for the state of the pager that served target among those that are locked.
func (k *Leftover) find(target Target) (*world, error) {
	var damage error
	states, empty := 0, (*world)(nil)
	for i := range k.states {
		s := &k.states[i]
		w, err := s.replay()
		if err != nil {
			damage = err
			continue
		}
		k.found = s
		if states++; len(w.spaces) == 0 {
			empty = w
			continue
		}
		w.spaces = slices.DeleteFunc(w.spaces, func(m *model) bool { return m.fd < 0 }) // they never came
		if len(w.spaces) > 0 && (target.Pid == 0 || w.spaces[0].pid == target.Pid) {
			return w, nil
		}
	}
	if states == 1 && empty != nil && damage == nil && k.served == nil && k.lastIn(empty) && (target.Pid == 0 || empty.spaces[0].pid == target.Pid) {
		return empty, nil
	}
	what := "of a process that misses memory: all of it is there, or its processes have ended"
	if target.Pid != 0 {
		what = "of process " + strconv.Itoa(target.Pid)
	}
	return nil, errors.Join(fmt.Errorf("%w: keeper %d has no state %s", ErrNoPredecessor, k.pid, what), damage)
}
