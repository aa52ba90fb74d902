package pager

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// endOthers ends the keepers that hold what is ours now and nothing else, and whose pager was killed: that of one
// that had taken over, but not yet ended the keeper which it took over from, or the other way round. As long as
// one has a userfaultfd open, memory stays registered when we close it, and waits for nobody.
// A keeper of which it cannot be told is left alone.
func (p *Pager) endOthers() error {
	own, err := userfaultfdsOf(os.Getpid())
	if err != nil {
		return err
	}
	pids, err := proc.ReadProcesses()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if pid == p.opts.Keeper.Pid() || !isKeeper(pid) {
			continue
		}
		k, err := OpenLeft(pid)
		if err != nil {
			continue // it has ended
		}
		// After these looks it still is the process that pid stood for.
		if k.isOrphan() && k.holdsNoneBut(own) {
			err = k.tryLock()
			if err == nil && k.served == nil {
				p.opts.Logger.Info("another keeper held the same", "keeper", pid)
				err = k.endAll()
			}
			if errors.Is(err, ErrNoPredecessor) { // it has ended
				err = nil
			}
		}
		k.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// isKeeper reports whether a process has the name of one.
func isKeeper(pid int) bool {
	stat, err := proc.ReadStat(pid)
	return err == nil && stat.Comm == keeperName
}

// isOrphan reports whether the pager whose keeper k is is gone, which is its parent. A keeper is made to
// send no signal when it ends; the kernel has it send SIGCHLD once it is given to another process, whoever that is.
func (k *Leftover) isOrphan() bool {
	stat, err := proc.ReadStat(k.pid)
	return err == nil && stat.Comm == keeperName && stat.ExitSignal == int(unix.SIGCHLD)
}

// lastIn reports whether the keeper is left of a pager that was killed while it let go of the last space of w, whose
// memory may still be registered. That space is w's again then, and misses nothing. w is to be the only
// state of the keeper: so, and as there is no other userfaultfd of a process that lives, nobody is yet to be written down.
func (k *Leftover) lastIn(w *world) bool {
	if len(w.spaces) > 0 || w.dropped == nil || !k.isOrphan() {
		return false
	}
	fds, err := k.living()
	if err != nil || len(fds) != 1 || fds[0] != w.dropped.fd {
		return false
	}
	w.spaces = []*model{w.dropped}
	return true
}

// Waits reports whether the keeper has userfaultfds of processes that live, or may have: in what nobody has taken of socket,
// the keeper's number of one, -1 if there is none. If nobody serves them, which the caller has
// to know, they wait for a successor. That the keeper is an orphan it does not ask: a pager that ends lets go of
// its locks before it is gone.
func (k *Leftover) Waits(socket int) (waits bool, err error) {
	if !isKeeper(k.pid) {
		return false, nil
	}
	fds, err := k.living()
	waits = len(fds) > 0
	if err == nil && !waits && socket >= 0 {
		var own int
		if own, err = k.take(socket); err == nil {
			waits = Unread(own)
			_ = unix.Close(own)
		}
	}
	if errors.Is(err, ErrNoPredecessor) {
		return false, nil
	}
	return waits, err
}

// living lists those of the keeper's userfaultfds whose processes live.
func (k *Leftover) living() ([]int, error) {
	fds, err := k.Userfaultfds()
	if err != nil {
		return nil, err
	}
	var list []int
	for _, fd := range fds {
		own, err := k.take(fd)
		if err != nil {
			return nil, err
		}
		u := uffd.FromFD(own)
		if !hasEnded(u) {
			list = append(list, fd)
		}
		_ = u.Close() // the keeper has it
	}
	return list, nil
}

// holdsNoneBut reports whether the keeper has userfaultfds, and all of them are among those of this process.
func (k *Leftover) holdsNoneBut(own []int) bool {
	list, err := k.Userfaultfds()
	return err == nil && len(list) > 0 && !slices.ContainsFunc(list, func(fd int) bool {
		return !slices.ContainsFunc(own, func(ours int) bool {
			order, err := proc.CompareFiles(os.Getpid(), ours, k.pid, fd)
			return err == nil && order == 0
		})
	})
}

// Userfaultfds lists those among the keeper's descriptors. The error wraps
// ErrNoPredecessor if it has ended.
func (k *Leftover) Userfaultfds() ([]int, error) {
	fds, err := userfaultfdsOf(k.pid)
	if err = k.sure(err); err != nil {
		return nil, fmt.Errorf("pager: userfaultfds of keeper %d: %w", k.pid, err)
	}
	return fds, nil
}

// Sockets is Userfaultfds for sockets.
func (k *Leftover) Sockets() ([]int, error) {
	fds, err := descriptorsOf(k.pid, func(link []byte) bool { return bytes.HasPrefix(link, []byte("socket:")) })
	if err = k.sure(err); err != nil {
		return nil, fmt.Errorf("pager: sockets of keeper %d: %w", k.pid, err)
	}
	return fds, nil
}

// sure is the error of a look at the keeper's descriptors that gave err: they may have been another's.
func (k *Leftover) sure(err error) error {
	switch {
	case hasGone(err):
		return fmt.Errorf("%w: %w", ErrNoPredecessor, err)
	case err != nil:
		return err
	}
	return k.lives()
}

// lives gives an error if the keeper has ended.
func (k *Leftover) lives() error {
	err := unix.PidfdSendSignal(k.pidfd, 0, nil, 0)
	if hasGone(err) {
		return fmt.Errorf("%w: it has ended", ErrNoPredecessor)
	}
	return os.NewSyscallError("pidfd_send_signal", err)
}

// userfaultfdLink is how what /proc/PID/fd shows of a userfaultfd ends.
const userfaultfdLink = "[userfaultfd]"

// userfaultfdsOf lists those among the descriptors of a process.
func userfaultfdsOf(pid int) ([]int, error) {
	return descriptorsOf(pid, func(link []byte) bool { return bytes.HasSuffix(link, []byte(userfaultfdLink)) })
}

// descriptorsOf lists those descriptors of a process of which /proc shows what is wanted.
func descriptorsOf(pid int, wanted func(link []byte) bool) (fds []int, err error) {
	err = proc.EachFD(pid, func(fd int, link []byte) error {
		if wanted(link) {
			fds = append(fds, fd)
		}
		return nil
	})
	return fds, err
}
