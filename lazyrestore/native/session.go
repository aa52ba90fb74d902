package native

import (
	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Session is what a process is to the job control of others.
type Session struct {
	ID       int  // session; 0: its leader is not of our pid namespace, as is that of what init starts
	Group    int  // process group
	Terminal bool // the session has a controlling terminal
	Stopped  bool // by SIGSTOP or the like: it does not run until SIGCONT
}

func (c *coder) session(st *State) {
	s := &st.Session
	num(c, &s.ID)
	num(c, &s.Group)
	c.flag(&s.Terminal)
	c.flag(&s.Stopped)
}

// sessionOf has the ids of the process's own pid namespace.
func sessionOf(stat *proc.Stat, status *proc.Status) Session {
	s := Session{ID: stat.Session, Group: stat.PGRP, Terminal: stat.TTY != 0}
	if n := len(status.NSsid); n > 0 {
		s.ID = status.NSsid[n-1]
	}
	if n := len(status.NSpgid); n > 0 {
		s.Group = status.NSpgid[n-1]
	}
	return s
}

// stopped notes that the process is stopped, or about to be: its pending
// SIGSTOP, which nobody can block, would stop the rebuild instead.
func (st *State) stopped(byGroup bool) {
	st.Session.Stopped = byGroup || removeStops(&st.Pending)
	for i := range st.Threads {
		if removeStops(&st.Threads[i].Pending) {
			st.Session.Stopped = true
		}
	}
}

// removeStops takes SIGSTOP out of a list of pending signals.
func removeStops(list *[][]byte) (found bool) {
	kept := (*list)[:0]
	for _, info := range *list {
		if unix.Signal(signalOf(info)) == unix.SIGSTOP {
			found = true
			continue
		}
		kept = append(kept, info)
	}
	*list = kept
	return found
}

// session says how the new process comes to its session and process group,
// which only its parent can give it: in the session of the restoring command if
// that is its own (of several that have no number here it cannot be told which),
// else in a new one. One that had a terminal has ours, as a job of a shell has its: in
// our session, in a group that is made the terminal's foreground one before it runs.
// Without that it is in a new session: as a group in the background of our terminal it
// could not read from it.
func (b *builder) session() (newSession bool, calls []proc.Call) {
	if b.re.opts.PIDNamespace {
		return true, nil // no other session has a number there
	}
	s := b.st.Session
	if s.Terminal && b.re.opts.Terminal {
		return false, []proc.Call{{NR: unix.SYS_SETPGID}}
	}
	own, err := unix.Getsid(0)
	if err != nil || s.ID != own || s.ID == b.st.PID || s.Terminal {
		return true, nil
	}
	if s.Group == unix.Getpgrp() {
		return false, nil
	}
	calls = []proc.Call{{NR: unix.SYS_SETPGID}} // a group of its own
	if s.Group != b.st.PID && s.Group != 0 {
		join := proc.Call{NR: unix.SYS_SETPGID | proc.MayFail} // EPERM: the group is gone
		join.Args[1] = uint64(s.Group)
		calls = append(calls, join)
	}
	return false, calls
}
