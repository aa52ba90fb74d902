package main

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// What this command does for a process that has its terminal: it is to the process what a
// shell is to a job, and to its own shell it is the job.

// followStops has this command stop when the process stops, so that the shell has its
// terminal again, until the process has ended.
func (s *supervised) followStops() {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, s.PID(), &info, unix.WSTOPPED, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return
		case s.wants(stopSignal(&info)):
			s.resume()
		case !jobControlled():
		default:
			s.verb.opts.Terminal.TakeBack(false)
			// A pipe's other commands are of the job, too. That we go on is told by SIGCONT.
			_ = unix.Kill(0, unix.SIGSTOP)
		}
	}
}

// wants reports whether a process is to go on at once that a signal has stopped.
func (s *supervised) wants(sig unix.Signal) bool {
	switch sig {
	case unix.SIGTTIN, unix.SIGTTOU:
		// A shell that has a job in the foreground which runs already tells nobody: we have
		// had the terminal since, and the process asks for it.
		return s.verb.opts.Terminal.Give() || !jobControlled()
	case unix.SIGTSTP:
		return !jobControlled() // as the kernel stops nobody by a key whom nobody would have go on
	}
	return false
}

// resume has the process go on, with the terminal if we have it.
func (s *supervised) resume() {
	t := s.verb.opts.Terminal
	t.Give()
	if err := unix.Kill(-t.Group(), unix.SIGCONT); err != nil { // it has left its group
		_ = s.Signal(unix.SIGCONT)
	}
}

// jobControlled reports whether somebody looks after our process group: a process of
// our session that is not of the group, and parent to one that is. Without one the group is orphaned.
func jobControlled() bool {
	group := unix.Getpgrp()
	session, err := unix.Getsid(0)
	for pid := unix.Getppid(); err == nil && pid > 0; {
		var parent proc.Stat
		if parent, err = proc.ReadStat(pid); err != nil {
			return false
		}
		if parent.PGRP != group {
			return parent.Session == session
		}
		pid = parent.PPID
	}
	return false
}
