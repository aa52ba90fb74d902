package pager

import (
	"bytes"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
)

const (
	// The reader looks where a thread runs when it has raised followFirst
	// faults in a row, and every followFaults from there on: a look costs a third
	// of a fault.
	followFirst  = 2 * rowFaults // by then it shows whether they are a stream
	followFaults = 32
	// The fields of /proc/PID/stat that are looked at, counted from the state
	// on, which comes after the name.
	statThreads, statProcessor = 17, 36
)

// A follower has the reader run where the faults come from. A thread that
// waits for a page and the reader that gets it take turns, so one processor is
// enough for both, and from one to the other it is a change of context. On
// another processor the thread's sleeps meanwhile, and to wake that takes, where
// it is a virtual one, longer than all the rest of a fault (two processors, one
// random touch of pages as they are, median: 21 µs against 60).
//
// It looks before it serves a fault, and goes when the thread has just been woken:
// the other processor then wakes once, for both. A move by itself took three times as long as
// serving a fault, while the next one waited.
type follower struct {
	s      *space
	tid    uint32
	faults int    // of that thread, in a row
	fd     int    // its stat file; 0 if there is none
	due    bool   // it is to be opened once the fault has been served
	alone  bool   // the file is that of a process, whose only thread is meant
	buf    []byte // for what it holds
	cpu    int    // to which the reader is to go; -1 if it is not
	// The latest look has found the thread on another processor. Until the next one in time it is not
	// looked for again because it is late: it always is, from there.
	elsewhere bool
}

// fault notes one that is about to be served, and looks where its thread is now and then.
func (w *follower) fault(f fault) {
	if f.s != w.s || f.tid != w.tid {
		w.forget()
		w.s, w.tid = f.s, f.tid
	}
	w.faults++
	w.cpu = -1
	w.due = w.fd == 0 && w.faults%followFaults == followFirst/2
	if w.fd == 0 || w.faults%followFaults != followFirst {
		return
	}
	if _, cpu, ok := w.look(); ok {
		w.cpu = cpu
	}
}

// look says what the thread does, by the letter of ps(1), and on which processor.
func (w *follower) look() (does byte, cpu int, ok bool) {
	n, err := unix.Pread(w.fd, w.buf, 0)
	if err != nil {
		return 0, 0, false // it is gone
	}
	does, cpu, ok = statusIn(w.buf[:n], w.alone)
	w.elsewhere = ok && cpu != thread.Processor()
	return does, cpu, ok
}

// waitsHere reports whether the thread, whose fault has been served, waits for the processor of
// the reader: it is ready to run, and it is the reader that does.
func (w *follower) waitsHere() bool {
	if w.fd == 0 || w.elsewhere {
		return false
	}
	does, _, ok := w.look()
	return ok && does == 'R' && !w.elsewhere
}

// served goes where the thread is whose fault has been served, if it was looked for.
// It opens the file for that some faults before: that takes as long as serving one. Faults that were not
// noted, those of a stream, are served too.
func (w *follower) served() {
	switch {
	case w.s == nil:
	case w.cpu >= 0:
		thread.MoveTo(w.cpu)
		w.cpu = -1
	case w.due:
		w.due = false
		w.open(w.s.pid)
	}
}

// open opens the stat file of the thread, of process pid. Where threads have
// no such names here, or faults do not tell them, it is that of the process.
func (w *follower) open(pid int) {
	if pid == 0 {
		return // a forked child's is not known
	}
	process := "/proc/" + strconv.Itoa(pid)
	fd, err := 0, error(unix.ENOENT)
	if w.tid != 0 {
		fd, err = unix.Open(process+"/task/"+strconv.Itoa(int(w.tid))+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if w.alone = err != nil; w.alone {
		fd, err = unix.Open(process+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return
	}
	w.fd = fd
	if w.buf == nil {
		w.buf = make([]byte, 1024)
	}
}

// forget ends the following of whom it follows.
func (w *follower) forget() {
	if w.fd != 0 {
		_ = unix.Close(w.fd)
	}
	*w = follower{buf: w.buf, cpu: -1}
}

// statusIn is the state and the processor that a stat file tells. With alone it has to be
// that of a process with one thread.
func statusIn(stat []byte, alone bool) (does byte, cpu int, ok bool) {
	rest := stat[bytes.LastIndexByte(stat, ')')+1:]
	for i := 0; ; i++ {
		rest = bytes.TrimLeft(rest, " ")
		field, more, found := bytes.Cut(rest, []byte(" "))
		switch {
		case !found:
			return 0, 0, false
		case i == 0:
			does = field[0]
		case i == statThreads && alone && string(field) != "1":
			return 0, 0, false
		case i == statProcessor:
			cpu, err := strconv.Atoi(string(field))
			return does, cpu, err == nil
		}
		rest = more
	}
}
