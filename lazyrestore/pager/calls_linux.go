package pager

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path"
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
// file syscall of /proc shows what it is in. If it runs it may be on its way there, and is looked at again. The converse
// does not hold for what /proc shows: a call that is shown may have ended, or may only wait for mmap_lock. That
// what is shown is not told yet is what the code relies on, hence the states of callOf; where nothing is ever told of it, limbo ends without it.

const (
	// lookYields is how often a look is made again before the looker sleeps in between.
	lookYields = 4
	// lookTime is how long it then waits at most: a thread may wait for a processor, on a busy virtual machine for
	// more than a tenth of a second, now and then for one. Nothing can be copied meanwhile, but without a look bytes may be wrong.
	lookTime = 5 * time.Second
	// lastRounds is how often it looks still once the pager is told to stop, some 0.1 s: enough for
	// a thread that computes to be seen.
	lastRounds = 500
	// All looks together wait one part in lookShare of the time, and up to maxLooks at once: where each has to wait
	// for a processor, moves that follow one another are looked at for so long.
	lookShare = 2
	maxLooks  = 20 * time.Second
	// settleTime is how long a look at all processes waits, out of no budget: most of their threads have nothing to tell, and
	// many may wait for a processor.
	settleTime = time.Millisecond
	// maxCalls is how many calls have room in the journal.
	maxCalls = 40
)

// errUnsure is of threads of which it could not be seen in time what they are in.
var errUnsure = errors.New("it is not known what all threads are in")

// lookAt looks at all threads of pid, or, where that is not known (0), of all processes but this one and e. Without
// an error it has seen each asleep once, or busy, or nothing was to be told any more, and it is idle. That one is seen
// in a call is no reason to look no further: a thread has put its event into the queue a moment before it can be seen
// to sleep, and one that was woken looks for a moment as if it slept still. With an error it has what was seen. Beyond
// some yields it waits as long as p and ctx let it.
func lookAt(ctx context.Context, pid int, e *elders, p *patience, need func() bool) (l lookOut, err error) {
	l = lookOut{ran: map[string]*runTime{}, all: pid == 0}
	defer l.close()
	if l.all {
		err = l.listAll(e)
	} else {
		err = l.list(strconv.Itoa(pid))
	}
	if err == nil {
		err = l.look(ctx, p, need)
	}
	return l, err
}

// A lookOut is for what the threads of a process, or of all, are in.
type lookOut struct {
	all    bool
	tasks  []string // directories of those that were not seen asleep or busy
	ran    map[string]*runTime
	calls  []leave
	advice []advice
	idle   bool // nothing was to be told any more: what comes later was not looked for
}

func (l *lookOut) list(pid string) error {
	dir := "/proc/" + pid + "/task/"
	tasks, err := os.ReadDir(dir)
	for _, t := range tasks {
		l.tasks = append(l.tasks, dir+t.Name())
	}
	return err
}

// listAll lists the threads of all processes but e, as far as there is room for that.
func (l *lookOut) listAll(e *elders) error {
	pids, err := e.others()
	for _, pid := range pids {
		if e := l.list(strconv.Itoa(pid)); noRoom(e) {
			err = e
		}
	}
	return err
}

// look looks at the tasks until all were seen, as long as need and patience last, and for lastRounds after ctx has
// ended, whose error it then has.
func (l *lookOut) look(ctx context.Context, p *patience, need func() bool) error {
	var end time.Time
	last := lastRounds
	for round := 0; need(); round++ {
		switch left, err := l.again(round > lookYields); {
		case err != nil: // asking again would be no better
			return err
		case left == 0:
			return nil
		case round < lookYields:
			thread.Yield()
			continue
		case round == lookYields:
			start := time.Now()
			if end = start.Add(settleTime); !l.all {
				end = start.Add(p.left(start))
				defer func() { p.spend(start, time.Now()) }()
			}
		}
		if ctx.Err() != nil {
			last--
		}
		if last < 0 || !time.Now().Before(end) {
			return cmp.Or(ctx.Err(), errUnsure)
		}
		nap(gatePause) // whom we wait for may need this processor
	}
	l.calls, l.advice, l.idle = nil, nil, true
	return nil
}

// again looks at those that are left, and returns how many are. With long it counts how long they run. Of
// all processes those that it may not look at are nobody.
func (l *lookOut) again(long bool) (left int, err error) {
	l.tasks = slices.DeleteFunc(l.tasks, func(task string) bool {
		seen, e := l.see(task, long)
		switch {
		case errors.Is(e, unix.ENOENT), errors.Is(e, unix.ESRCH):
			return true // gone
		case l.all && errors.Is(e, errUnsure):
			return false // looked at again, as long as there is time
		case l.all && e != nil && !noRoom(e):
			return true // nobody
		}
		err = cmp.Or(err, e)
		return seen
	})
	return len(l.tasks), err
}

func (l *lookOut) see(task string, long bool) (bool, error) {
	c, asleep, err := callOf(task)
	switch {
	case err != nil:
		return false, err
	case asleep:
		l.take(c, path.Base(task))
		return true, nil
	case !long:
		return false, nil
	case l.ran[task] == nil:
		l.ran[task], err = newRunTime(task)
		return false, err
	default:
		return l.ran[task].isBusy()
	}
}

// take notes what the thread tid sleeps in.
func (l *lookOut) take(c sysCall, tid string) {
	l.calls = append(l.calls, c.leavesOf(tid)...)
	if a, ok := c.advice(); ok {
		l.advice = append(l.advice, a)
	}
}

func (l *lookOut) close() {
	for _, t := range l.ran {
		t.close()
	}
}

// A patience is how long looks may wait for threads, while nothing can be copied into any space.
type patience struct {
	spent time.Duration // not made up for yet
	last  time.Time
}

// left is how long a look that begins to wait may do so.
func (p *patience) left(now time.Time) time.Duration {
	p.spent = max(0, p.spent-now.Sub(p.last)/lookShare)
	p.last = now
	return min(lookTime, maxLooks-p.spent)
}

// spend notes that a look has waited.
func (p *patience) spend(start, end time.Time) { p.spent += end.Sub(start) }

// callOf is the call that the thread of dir sleeps in. Who waits for an event to be read is in state D alone. One
// that was woken, as by a read of ours, and has not got a processor yet, or that is stopped or traced on the
// way out, still shows the call that it slept in, of which all may have been told long ago.
func callOf(dir string) (c sysCall, asleep bool, err error) {
	line, err := readLine(dir + "/syscall")
	if err != nil {
		return c, false, err
	}
	if c, asleep = parseCall(line); !asleep {
		return c, false, nil
	}
	if _, advises := c.advice(); !advises && c.leaves() == nil {
		return c, true, nil
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

// lookAround finds out what was under way when what is fresh was told, and applies that. Where it ends with ctx
// what is fresh stays so: a successor takes it for something of which nothing was seen. The gate is shut.
func (r *reader) lookAround(s *space) error {
	var calls []leave
	sure := false
	if s.pid != 0 && !s.hidden { // of a forked child it is not known
		l, err := lookAt(r.ctx, s.pid, nil, &r.patience, func() bool { return isChanging(s.u) })
		if err != nil && r.ctx.Err() != nil {
			return r.ctx.Err()
		}
		calls, sure = l.calls, err == nil
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
