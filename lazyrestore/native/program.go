package native

import (
	"encoding/binary"
	"fmt"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A program is what a process runs to build itself: the loop that executes
// tables of system calls, the tables, and the data that the calls point at.
// It lies in one shared mapping, at base in the process and in buf here, so
// that building it needs no system call and its results are seen at once.
type program struct {
	base  uint64
	buf   []byte      // the shared mapping
	arena *proc.Arena // gives out its parts
	timed bool        // the process reads the clock before each step
	given uint32      // how many portions of the first table it may run
	err   error       // the first that did not fit
}

// mapped is all that the process has of the restore until it leaves the program.
func (p *program) mapped() page.Range {
	return page.RangeOf(page.Addr(p.base), uint64(len(p.buf)))
}

// A step is a system call of a table with what is known of it: how it is
// called in an error, and what it must return.
type step struct {
	proc.Call
	what  string // "map", "open", ...
	about string // the path, range or name that it is about
	at    page.Addr
	want  uint64 // its result, where wants
	wants bool
	only  uint16 // the error with which alone it may fail; 0: with any
	warn  string // what the user is told where it fails and may
}

// A table is a list of steps that one thread runs in order.
type table struct {
	steps    []step
	parts    []part    // of the steps, for a trace
	portions []portion // of the steps that are in the program
	placed   int       // how many those are
	checked  int       // how many have returned what they should
}

// A part is the steps of a table from first on, up to the next part.
type part struct {
	name  string
	first int
}

// part gives the steps that follow a name.
func (t *table) part(name string) { t.parts = append(t.parts, part{name, len(t.steps)}) }

// call appends a step. The last of its properties are set through the pointer,
// which is good until the next call.
func (t *table) call(what string, nr uintptr, args ...uint64) *step {
	t.steps = append(t.steps, step{what: what})
	s := &t.steps[len(t.steps)-1]
	s.NR = uint64(nr)
	copy(s.Args[:], args)
	return s
}

func (s *step) on(about string) *step { s.about = about; return s }
func (s *step) by(a page.Addr) *step  { s.at = a; return s }
func (s *step) returns(want uint64)   { s.want, s.wants = want, true }
func (s *step) mayFail() *step        { s.NR |= proc.MayFail; return s }
func (s *step) warns(what string)     { s.warn = what }
func (s *step) mayFailWith(e unix.Errno) *step {
	s.only = uint16(e)
	return s.mayFail()
}
func (s *step) number() int { return int(s.NR &^ proc.MayFail) }

// String is the step as an error names it.
func (s *step) String() string {
	switch {
	case s.about != "" && s.at != 0:
		return fmt.Sprintf("%s %s at %v", s.what, s.about, s.at)
	case s.at != 0:
		return fmt.Sprintf("%s at %v", s.what, s.at)
	case s.about != "":
		return s.what + " " + s.about
	}
	return s.what
}

// alloc reserves n bytes on a boundary of 16 and gives their address in the
// process and their bytes here.
func (p *program) alloc(n int) (uint64, []byte) {
	addr, mem, err := p.arena.Alloc(n, 16)
	if err != nil {
		if p.err == nil {
			p.err = err
		}
		return p.base, make([]byte, n)
	}
	return addr, mem
}

// bytes places b.
func (p *program) bytes(b []byte) uint64 {
	addr, to := p.alloc(len(b))
	copy(to, b)
	return addr
}

// cstring places s with its final NUL.
func (p *program) cstring(s string) uint64 {
	addr, to := p.alloc(len(s) + 1)
	copy(to, s)
	return addr
}

// words places numbers as an array of 64 bits each.
func (p *program) words(v ...uint64) uint64 {
	addr, to := p.alloc(8 * len(v))
	for i, x := range v {
		binary.NativeEndian.PutUint64(to[8*i:], x)
	}
	return addr
}

// ran is how many steps of t have returned.
func (p *program) ran(t *table) int {
	return sort.Search(len(t.steps), func(i int) bool {
		_, done := p.result(t, i)
		return !done
	})
}

// check finds the first of the first n steps of t that has failed, not run, or
// returned what it must not. Those that were well are not looked at again.
func (p *program) check(t *table, n int) error {
	for ; t.checked < n; t.checked++ {
		i := t.checked
		s := &t.steps[i]
		ret, done := p.result(t, i)
		if !done {
			return &StepError{Call: s.number(), Step: s.String(), Errno: unix.ECANCELED}
		}
		if errno, failed := proc.Errno(ret); failed && (s.NR&proc.MayFail == 0 || s.only != 0 && errno != unix.Errno(s.only)) {
			return &StepError{Call: s.number(), Step: s.String(), Errno: errno}
		}
		if s.wants && uint64(ret) != s.want {
			return &StepError{Call: s.number(), Step: s.String(), Errno: unix.EBADE, Got: uint64(ret), Want: s.want}
		}
	}
	return nil
}

// warnings are of the steps of t that failed and may.
func (p *program) warnings(t *table) (warn []string) {
	for i := range t.steps {
		s := &t.steps[i]
		if s.warn == "" {
			continue
		}
		if ret, done := p.result(t, i); done {
			if errno, failed := proc.Errno(ret); failed {
				warn = append(warn, s.warn+": "+errno.Error())
			}
		}
	}
	return warn
}

// StepError is a step of the rebuild that did not do what it should.
type StepError struct {
	Call      int        // number of the system call
	Step      string     // what was tried: "map /usr/lib/libm.so.6 at 0x7f..."
	Errno     unix.Errno // why it failed; EBADE where it returned Got instead of Want, ECANCELED where it did not run
	Got, Want uint64
}

func (e *StepError) Error() string {
	switch e.Errno {
	case unix.EBADE:
		return fmt.Sprintf("%s: returned %#x instead of %#x", e.Step, e.Got, e.Want)
	case unix.ECANCELED:
		return e.Step + ": the process did not come to it"
	}
	return fmt.Sprintf("%s: %v", e.Step, e.Errno)
}

func (e *StepError) Unwrap() error { return e.Errno }

// Unprivileged reports whether a privilege lacks for the step. Other calls than these have
// EPERM for other reasons, as mmap for memory that is sealed.
func (e *StepError) Unprivileged() bool {
	switch e.Call {
	case unix.SYS_CLONE3, unix.SYS_SETRESUID, unix.SYS_SETRESGID, unix.SYS_SETGROUPS, unix.SYS_CAPSET, unix.SYS_PRCTL,
		unix.SYS_PRLIMIT64, unix.SYS_SCHED_SETSCHEDULER, unix.SYS_SCHED_SETATTR, unix.SYS_SCHED_SETAFFINITY,
		unix.SYS_SETPRIORITY, unix.SYS_IOPRIO_SET, unix.SYS_MLOCK2, unix.SYS_MLOCKALL, unix.SYS_OPENAT:
		return e.Errno == unix.EPERM
	}
	return false
}
