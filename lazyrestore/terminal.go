package lazyrestore

import (
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/native"
)

// A Terminal is the controlling terminal of this program, which a restored process
// gets as a job of a shell does: in this program's session, in a group of its own that is
// the terminal's foreground one. Whoever restores does then what the shell does: where
// the process stops or ends, the terminal is taken back.
// All calls may run at once; those of a nil Terminal do nothing.
type Terminal struct {
	fd  int
	was unix.Termios

	mu    sync.Mutex
	group int  // of the process that has had it; 0: none has
	given bool // that group has it now, as far as we know
}

// OpenTerminal is the controlling terminal, where this program is in its foreground;
// else nil.
func OpenTerminal() *Terminal {
	fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	t := &Terminal{fd: fd}
	was, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil || !t.ours() {
		unix.Close(fd)
		return nil
	}
	t.was = *was
	return t
}

// ours reports whether this program is in the foreground.
func (t *Terminal) ours() bool {
	group, err := unix.IoctlGetInt(t.fd, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// first gives the terminal to a process that does not run yet, in the modes that it had. Where this
// program is not in the foreground any more, it gets it by Give later.
func (t *Terminal) first(pid int, modes native.TerminalModes) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.group = pid // which leads a group
	if t.ours() {
		now := modes.On(t.was)
		_ = unix.IoctlSetTermios(t.fd, unix.TCSETS, &now) // a terminal that is gone says so to the process itself
		t.give()
		if !t.given && t.ours() { // in the background that would stop us
			_ = unix.IoctlSetTermios(t.fd, unix.TCSETS, &t.was)
		}
	}
}

func (t *Terminal) give() {
	t.given = t.ours() && unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, t.group) == nil
}

// Group is the process group of the process that was given the terminal; 0: none was.
func (t *Terminal) Group() int {
	if t == nil {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.group
}

// Give gives the terminal to the process again, if this program is in the foreground, and
// says whether it was.
func (t *Terminal) Give() bool {
	if t.Group() == 0 {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.give()
	return t.given
}

// TakeBack makes this program the foreground again, if the process had the terminal. With
// modes the terminal is as OpenTerminal found it: for a process that was killed, and
// could not see to it.
func (t *Terminal) TakeBack(modes bool) {
	if t.Group() == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.given {
		return
	}
	t.given = false
	// The kernel would stop us for that, in the background.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var stop, old unix.Sigset_t
	stop.Val[0] = 1 << (unix.SIGTTOU - 1)
	if unix.PthreadSigmask(unix.SIG_BLOCK, &stop, &old) != nil {
		return
	}
	_ = unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, unix.Getpgrp())
	if modes {
		_ = unix.IoctlSetTermios(t.fd, unix.TCSETS, &t.was)
	}
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
}
