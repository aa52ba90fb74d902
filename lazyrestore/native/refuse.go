package native

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A Reason is one thing that stands against a checkpoint or a restore.
type Reason struct {
	What string `json:"what"`           // the thing, by name: "descriptor 7 (socket:[4711])"
	Why  string `json:"why"`            // what is wrong with it
	Help string `json:"help,omitempty"` // what the user can do about it
}

// RefusedError says that an image cannot hold the process, or that this place
// cannot take it, and that nothing was changed. It has every reason found, not
// only the first.
type RefusedError struct {
	Reasons []Reason
}

func (e *RefusedError) Error() string {
	var b strings.Builder
	b.WriteString("refused")
	for i, r := range e.Reasons {
		if i == 0 {
			b.WriteString(": ")
		} else {
			b.WriteString("; ")
		}
		b.WriteString(r.What)
		b.WriteString(": ")
		b.WriteString(r.Why)
	}
	return b.String()
}

// HiddenError says that there is something of a process which the kernel shows only to
// those who may do more than trace it.
type HiddenError struct {
	Err error // what was tried, and what the kernel said
}

func (e *HiddenError) Error() string { return e.Err.Error() }

// Unwrap gives the error.
func (e *HiddenError) Unwrap() error { return e.Err }

// hidden is the error of a read that takes a capability.
func hidden(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return &HiddenError{err}
	}
	return err
}

// reasons collects what stands against the work.
type reasons struct {
	list []Reason
}

func (r *reasons) add(what, why, help string) {
	r.list = append(r.list, Reason{what, why, help})
}

// taken adds that a process id is in use, and by whom.
func (r *reasons) taken(pid int) {
	why, help := "another process has it", "wait until that process has ended, or end it, or restore with --pid-ns"
	s, err := proc.ReadStatus(pid)
	switch {
	case err != nil:
	case s.Tgid != pid:
		why = "a thread of process " + named(s.Tgid) + " has it"
	case s.State != 'Z' && s.State != 'X', s.Threads > 1: // its first thread may have ended
		why = "another process has it (" + printable(s.Name) + ")"
	case s.PPid == 0:
		why = "its process has ended, but its parent, which is not in this pid namespace, has not waited for it (a zombie)"
		help = "restore with --pid-ns"
	default:
		why = "its process has ended, but process " + named(s.PPid) + ", its parent, has not waited for it (a zombie)"
		help = "have the parent wait for it, or end the parent, or restore with --pid-ns"
		if s.PPid == 1 {
			help = "restore with --pid-ns"
		}
	}
	r.add("process id "+strconv.Itoa(pid), why, help)
}

// err is nil where there is no reason to refuse.
func (r *reasons) err() error {
	if len(r.list) == 0 {
		return nil
	}
	return &RefusedError{r.list}
}
