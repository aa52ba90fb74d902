package native

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// PosixTimer is one timer of timer_create(2), with the time that was left.
type PosixTimer struct {
	ID                        int
	Clock                     int32  // clock_gettime(2)'s number
	Notify                    uint32 // sigev_notify
	Signal                    int
	Value                     uint64 // sigev_value
	TID                       int    // the thread that is told, with SIGEV_THREAD_ID
	IntervalSec, IntervalNsec uint64
	ValueSec, ValueNsec       uint64
}

// posixTimers codes section 67.
func (c *coder) posixTimers(st *State) {
	list(c, &st.PosixTimers, func(t *PosixTimer) {
		clock := uint32(t.Clock)
		num(c, &t.ID)
		num(c, &clock)
		num(c, &t.Notify)
		num(c, &t.Signal)
		c.u64(&t.Value)
		num(c, &t.TID)
		for _, v := range []*uint64{&t.IntervalSec, &t.IntervalNsec, &t.ValueSec, &t.ValueNsec} {
			c.u64(v)
		}
		t.Clock = int32(clock)
	})
}

// See <asm-generic/siginfo.h> and <linux/posix-timers.h>. A negative clock is
// that of the CPU time of a task: its id, inverted, above three bits of kind.
const (
	sigevSignal   = 0
	sigevNone     = 1
	sigevThread   = 2
	sigevThreadID = 4

	clockKinds = 3
	clockOfFD  = 3 // of the low two bits: a descriptor's clock

	clockOfThread = 4

	maxTimerID     = 1<<31 - 1
	maxTimersMade  = 1 << 16 // to come to an id
	itimerspecSize = 32
	sigeventSize   = 64
)

var sigevOf = map[string]uint32{"signal": sigevSignal, "none": sigevNone, "thread": sigevThread}

// posixTimers reads what /proc tells of the timers.
func (c *capture) posixTimers() error {
	timers, err := proc.ReadTimers(c.pid)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	slices.SortFunc(timers, func(a, b proc.Timer) int { return cmp.Compare(a.ID, b.ID) })
	for i := range timers {
		t := &timers[i]
		name := "POSIX timer " + strconv.Itoa(t.ID)
		notify, known := sigevOf[t.Notify]
		switch {
		case len(t.Unknown) > 0:
			c.refused.add(name, "it has state that is not preserved: "+t.Unknown[0], "delete it for the checkpoint")
		case !known:
			c.refused.add(name, "it tells of its end by "+t.Notify, "delete it for the checkpoint")
		}
		out := PosixTimer{ID: t.ID, Clock: int32(t.Clock), Notify: notify, Signal: t.Signal, Value: t.Value}
		if t.Thread {
			out.Notify, out.TID = notify|sigevThreadID, t.Target
		}
		c.st.PosixTimers = append(c.st.PosixTimers, out)
	}
	return nil
}

// checkTimers refuses a state that would take too long to make.
func (st *State) checkTimers(r *reasons) {
	n := len(st.PosixTimers)
	if n > 0 && st.PosixTimers[n-1].ID > maxTimersMade && !restoresTimerIDs() {
		r.add("POSIX timer "+strconv.Itoa(st.PosixTimers[n-1].ID), "this kernel cannot make a timer of that id", "restore under Linux 6.15 or later")
	}
}

// timerClocks refuses timers whose clock a restore could not name. It needs
// the list of threads.
func (c *capture) timerClocks() {
	ours := make(map[int]bool)
	for i := range c.st.Threads {
		ours[c.inner[c.st.Threads[i].TID]] = true // the number of a clock has the process's own id
	}
	for i := range c.st.PosixTimers {
		t := &c.st.PosixTimers[i]
		name, help := "POSIX timer "+strconv.Itoa(t.ID), "delete it for the checkpoint"
		task := int(^(t.Clock >> clockKinds))
		switch {
		case len(c.st.Threads) > 1 && (t.Clock == unix.CLOCK_THREAD_CPUTIME_ID || t.Clock < 0 && task == 0 && t.Clock&clockOfThread != 0):
			c.refused.add(name, "it counts the CPU time of a thread, and the kernel does not tell which", help)
		case t.Clock < 0 && (t.Clock&3 == clockOfFD || task != 0 && !ours[task]):
			c.refused.add(name, "it goes by the clock of a device or of another process", help)
		}
	}
}

// askTimers asks the process how much time is left.
func (q *questions) askTimers() error {
	const atOnce = 100
	timers := q.f.c.st.PosixTimers
	for len(timers) > 0 {
		part := timers[:min(len(timers), atOnce)]
		timers = timers[len(part):]
		err := q.ask(q.f.pid, itimerspecSize*atOnce, func() []asked {
			var list []asked
			for i := range part {
				t, at := &part[i], q.room(itimerspecSize)
				list = append(list, asked{call(unix.SYS_TIMER_GETTIME, uint64(t.ID), q.at+at), func(int64) {
					t.IntervalSec, t.IntervalNsec = q.word(at), q.word(at+8)
					t.ValueSec, t.ValueNsec = q.word(at+16), q.word(at+24)
				}})
			}
			return list
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// posixTimerSteps plans the timers, with their old ids: asked for, where the
// kernel can be asked (Linux 6.15), else by making and deleting those between,
// for it counts up.
func (b *builder) posixTimerSteps(t *table) {
	timers := b.st.PosixTimers
	if len(timers) == 0 {
		return
	}
	asks := restoresTimerIDs()
	if asks {
		t.call("ask for old timer ids", unix.SYS_PRCTL, unix.PR_TIMER_CREATE_RESTORE_IDS, unix.PR_TIMER_CREATE_RESTORE_IDS_ON)
	}
	next := 0
	for i := range timers {
		p := &timers[i]
		for ; !asks && next < p.ID; next++ {
			b.createTimer(t, &PosixTimer{ID: next, Clock: unix.CLOCK_MONOTONIC, Notify: sigevNone})
			t.call("delete timer", unix.SYS_TIMER_DELETE, uint64(next)).on(strconv.Itoa(next))
		}
		next = p.ID + 1
		b.createTimer(t, p)
		t.call("find timer", unix.SYS_TIMER_GETOVERRUN, uint64(p.ID)).on(strconv.Itoa(p.ID)) // it has that id
		if p.ValueSec|p.ValueNsec != 0 {
			t.call("set timer", unix.SYS_TIMER_SETTIME, uint64(p.ID), 0,
				b.prog.words(p.IntervalSec, p.IntervalNsec, p.ValueSec, p.ValueNsec), 0).on(strconv.Itoa(p.ID))
		}
	}
	if asks {
		t.call("ask no more for old timer ids", unix.SYS_PRCTL, unix.PR_TIMER_CREATE_RESTORE_IDS, unix.PR_TIMER_CREATE_RESTORE_IDS_OFF)
	}
}

func (b *builder) createTimer(t *table, p *PosixTimer) {
	event, e := b.prog.alloc(sigeventSize)
	putWord(e, p.Value)
	le := binary.NativeEndian
	le.PutUint32(e[8:], uint32(p.Signal))
	le.PutUint32(e[12:], p.Notify)
	le.PutUint32(e[16:], uint32(p.TID))
	id, want := b.prog.alloc(8)
	le.PutUint32(want, uint32(p.ID))
	t.call("create timer", unix.SYS_TIMER_CREATE, uint64(p.Clock), event, id).on(strconv.Itoa(p.ID))
}

// restoresTimerIDs reports whether this kernel makes timers with given ids.
func restoresTimerIDs() bool {
	_, err := unix.PrctlRetInt(unix.PR_TIMER_CREATE_RESTORE_IDS, unix.PR_TIMER_CREATE_RESTORE_IDS_GET, 0, 0, 0)
	return err == nil
}

// timerRoom is how many steps of a program the timers take.
func (st *State) timerRoom() int {
	n := len(st.PosixTimers)
	if n == 0 || restoresTimerIDs() {
		return 4*n + 2
	}
	return 4*n + 3*st.PosixTimers[n-1].ID // those between, which take more memory
}

func (st *State) validTimers() error {
	last := -1
	for i := range st.PosixTimers {
		t := &st.PosixTimers[i]
		if t.ID <= last || t.ID > maxTimerID || t.Signal < 0 || t.Signal > maxSignal {
			return fmt.Errorf("POSIX timer %d is out of order or bounds", t.ID)
		}
		last = t.ID
	}
	return nil
}
