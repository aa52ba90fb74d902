package pager

import (
	"cmp"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
)

// What the kernel does (mm/mremap.c, mm/mmap.c, fs/userfaultfd.c). A call changes the address space with
// mmap_lock held for writing, lets go of it, and only then puts what it has to tell into the
// queue, where it sleeps until that is read. In between it may lose the processor, and
// others change, tell and return. The queue itself is in order. An mremap tells that it has moved, and, when
// that was read, that nothing is left. An munmap tells once. A mapping that grows in its
// place tells nothing.
//
// A look is made when an event was read, and before the next is. Whatever was done before and is not told
// yet, its thread is still in that call: if it sleeps, what it has to tell is in the queue, and the
// file syscall of /proc shows what it is in. If it runs it may be on its way there, and is looked at again.

const (
	// lookYields is how often a look is made again before the looker sleeps in between.
	lookYields = 4
	// lookTime is how long it lasts at most: a thread may wait for a processor. Nothing can be copied
	// into that space meanwhile.
	lookTime = time.Second
	// busyTime is how long a thread has run, in busySteps or more, if it is not on its way to its sleep, which
	// takes some microseconds: not even if the processor was taken away from the machine in between.
	busyTime  = time.Millisecond
	busySteps = 3
	// maxCalls is how many calls have room in the journal.
	maxCalls = 40
)

// errUnsure is of threads of which it could not be seen in time what they are in.
var errUnsure = errors.New("it is not known what all threads are in")

// leaves lists the calls by which memory is leaving a place, of all threads of
// pid. Without an error none is missing: each thread was seen asleep once, or busy, or there is no need,
// for all has been told.
func leaves(pid int, need func() bool) (calls []leave, err error) {
	dir := "/proc/" + strconv.Itoa(pid) + "/task/"
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	ran := map[string]*runs{}
	for end, round := time.Now().Add(lookTime), 0; need(); round++ {
		tasks = slices.DeleteFunc(tasks, func(t os.DirEntry) bool {
			c, asleep, e := callOf(dir + t.Name())
			switch {
			case errors.Is(e, unix.ENOENT), errors.Is(e, unix.ESRCH):
				return true // gone
			case e != nil:
				err = e
			case asleep:
				calls = append(calls, c.leavesOf(t.Name())...)
			case round >= lookYields:
				asleep, e = isBusy(ran, dir+t.Name()+"/schedstat")
				err = cmp.Or(err, e)
			}
			return asleep
		})
		switch {
		case err != nil: // asking again would be no better
			return nil, err
		case len(tasks) == 0:
			return calls, nil
		case time.Now().After(end):
			return nil, errUnsure
		case round < lookYields:
			thread.Yield()
		default:
			thread.Sleep(gatePause) // whom we wait for may need this processor
		}
	}
	return nil, nil
}

// callOf is the call that the thread of dir sleeps in. Who waits for an event to be read is in state D alone. One
// that was woken, as by a read of ours, and has not got a processor yet, or that is stopped or traced on the
// way out, still shows the call that it slept in, of which all may have been told long ago.
func callOf(dir string) (c sysCall, asleep bool, err error) {
	line, err := readLine(dir + "/syscall")
	if err != nil {
		return c, false, err
	}
	if c, asleep = parseCall(line); !asleep || c.leaves() == nil {
		return c, asleep, nil
	}
	stat, err := readLine(dir + "/stat")
	if err != nil {
		return c, false, err
	}
	switch rest := stat[strings.LastIndexByte(stat, ')')+1:]; {
	case strings.HasPrefix(rest, " R"):
		return c, false, nil
	case !strings.HasPrefix(rest, " D"):
		return sysCall{nr: -1}, true, nil
	}
	again, err := readLine(dir + "/syscall")
	return c, again == line, err
}

// A runs is how long a thread has run, and in how many steps, since it was first asked.
type runs struct {
	first, last time.Duration
	steps       int
}

// isBusy reports whether a thread, by its schedstat file, has run so much since it was first asked that
// it is in no call.
func isBusy(ran map[string]*runs, path string) (bool, error) {
	line, err := readLine(path)
	if err != nil {
		return false, err
	}
	first, _, _ := strings.Cut(line, " ")
	n, err := strconv.ParseInt(first, 10, 64)
	if err != nil || strings.HasPrefix(line, "0 0 0") {
		return false, errUnsure // the kernel does not count, or not yet
	}
	now := time.Duration(n)
	t := ran[path]
	if t == nil {
		ran[path] = &runs{now, now, 0}
		return false, nil
	}
	if now > t.last {
		t.last = now
		t.steps++
	}
	return t.steps >= busySteps && now-t.first > busyTime, nil
}

// readLine reads a line of /proc without the detours of package os, for whoever is
// looked at waits for it.
func readLine(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	var b [256]byte
	n, err := unix.Read(fd, b[:])
	return string(b[:max(n, 0)]), err
}

// A sysCall is one that a thread sleeps in; nr is -1 if it is in none.
type sysCall struct {
	nr   int
	args [6]uint64
}

// parseCall takes in a line of /proc/PID/task/TID/syscall: a call's number and six
// arguments in hex, or "running".
func parseCall(line string) (c sysCall, asleep bool) {
	none := sysCall{nr: -1}
	f := strings.Fields(line)
	if len(f) == 0 || f[0] == "running" {
		return none, len(f) == 0
	}
	nr, err := strconv.Atoi(f[0])
	if err != nil || len(f) <= len(c.args) {
		return none, true
	}
	c.nr = nr
	for i := range c.args {
		if c.args[i], err = strconv.ParseUint(f[i+1], 0, 64); err != nil {
			return none, true
		}
	}
	return c, true
}

// leaves is what the call takes from where; the kernel refuses addresses within a page.
func (c *sysCall) leaves() []leave {
	at, old, size := page.Addr(c.args[0]), pageUp(c.args[1]), pageUp(c.args[2])
	switch {
	case at%page.Size != 0 || page.RangeOf(at, old).Empty():
	case c.nr == unix.SYS_MUNMAP:
		return []leave{{page.RangeOf(at, old), false, 0}}
	case c.nr == unix.SYS_MREMAP && size < old:
		list := []leave{{page.RangeOf(at+page.Addr(size), old-size), false, 0}}
		if c.args[3]&unix.MREMAP_FIXED != 0 && size > 0 {
			list = append(list, leave{page.RangeOf(at, size), true, 0})
		}
		return list
	case c.nr == unix.SYS_MREMAP && c.args[3]&unix.MREMAP_DONTUNMAP == 0:
		return []leave{{page.RangeOf(at, old), true, 0}}
	}
	return nil
}

// leavesOf is leaves, of the thread tid.
func (c *sysCall) leavesOf(tid string) []leave {
	list := c.leaves()
	for i := range list {
		list[i].tid, _ = strconv.Atoi(tid)
	}
	return list
}

func pageUp(n uint64) uint64 { return uint64(page.Addr(n).Up()) }

// lookAround finds out what was under way when what is fresh was told, and applies that. The gate is shut.
func (r *reader) lookAround(s *space) error {
	var calls []leave
	sure := false
	if s.pid != 0 && !s.hidden { // of a forked child it is not known
		var err error
		calls, err = leaves(s.pid, func() bool { return isChanging(s.u) })
		sure = err == nil
		s.hidden = errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)
	}
	var list []event
	for _, l := range calls {
		if s.concerns(l) {
			list = append(list, event{kind: eventLeave, from: l.Range, moves: l.moves, tid: l.tid})
		}
	}
	if !sure || len(list) > maxCalls {
		list, sure = nil, false
	}
	return r.say(s, append(list, event{kind: eventLooked, sure: sure})...)
}
