package native

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Descriptors that count: eventfd, timerfd; and signalfd, which has a mask and
// nothing else.

func (c *capture) describeEventFD(d *descriptor, o *Open) {
	o.Kind, o.Count, o.Sem = OpenEventFD, d.info.EventCount, d.info.EventFDSem
	if !d.info.HasSemaphore {
		c.warn = append(c.warn, d.String()+": this kernel does not tell whether it is a semaphore; taken as a counter")
	}
}

func (r *reopener) eventFD(o *Open) (int, error) {
	flags := int(o.Flags & unix.O_NONBLOCK)
	if o.Sem {
		flags |= unix.EFD_SEMAPHORE
	}
	fd, err := r.raiseNew(unix.Eventfd(0, flags))
	if err != nil {
		return -1, err
	}
	if o.Count != 0 {
		var b [8]byte
		putWord(b[:], o.Count)
		if _, err := unix.Write(fd, b[:]); err != nil {
			return -1, fmt.Errorf("set an eventfd to %d: %w", o.Count, err)
		}
	}
	return fd, nil
}

// A Timer is a timerfd: Open is the index of its description, whose Count is
// the expirations that were not read.
type Timer struct {
	Open     uint32
	Clock    int
	Flags    uint64 // of timerfd_settime(2)
	Interval uint64 // nanoseconds
	Value    uint64 // nanoseconds left; 0: it is off
	Wall     int64  // when it was to run out, nanoseconds of CLOCK_REALTIME, where Flags say that it is absolute
}

const (
	timerAbsolute = 1          // TFD_TIMER_ABSTIME
	timerCancel   = 2          // TFD_TIMER_CANCEL_ON_SET
	setTicks      = 0x40085400 // TFD_IOC_SET_TICKS
)

// wall reports whether the timer goes by the time of day. What goes by another
// clock has no absolute time: only what is left of it counts.
func (t *Timer) wall() bool {
	return t.Flags&timerAbsolute != 0 && (t.Clock == unix.CLOCK_REALTIME || t.Clock == unix.CLOCK_REALTIME_ALARM)
}

func (c *capture) describeTimerFD(d *descriptor, o *Open) error {
	o.Kind = OpenTimerFD
	if !d.info.IsTimerFD {
		c.refused.add(d.String(), "this kernel does not tell the state of a timerfd", "close it for the checkpoint")
		return nil
	}
	in := &d.info.Timer
	o.Count = in.Ticks
	t := Timer{Open: d.open, Clock: in.Clock, Flags: uint64(in.Flags), Interval: nanoseconds(in.Interval), Value: nanoseconds(in.Value)}
	if t.Value == 0 && t.Interval != 0 && in.Ticks != 0 {
		t.Value = t.Interval // it has run out, and goes on when that is read
	}
	if in.Flags&^(timerAbsolute|timerCancel) != 0 {
		c.refused.add(d.String(), fmt.Sprintf("its flags are not known: %#x", in.Flags), "close it for the checkpoint")
	}
	if t.wall() {
		t.Wall = time.Now().UnixNano() + int64(t.Value)
	}
	c.st.TimerFDs = append(c.st.TimerFDs, t)
	return nil
}

func nanoseconds(v [2]uint64) uint64 { return v[0]*1e9 + v[1] }

func (r *reopener) timerFD(o *Open, index int) (int, error) {
	i, ok := slices.BinarySearchFunc(r.st.TimerFDs, index, func(t Timer, index int) int { return int(t.Open) - index })
	if !ok {
		return -1, fmt.Errorf("%w: a timerfd without its state", errState)
	}
	t := &r.st.TimerFDs[i]
	fd, err := r.raiseNew(unix.TimerfdCreate(t.Clock, int(o.Flags&unix.O_NONBLOCK)))
	if err != nil {
		return -1, fmt.Errorf("make a timerfd of clock %d: %w", t.Clock, err)
	}
	// Only what is absolute and of the time of day can be cancelled by a change of it.
	flags, value := 0, int64(t.Value)
	if t.Value != 0 && t.wall() {
		flags, value = int(t.Flags), t.Wall
	}
	spec := unix.ItimerSpec{Interval: unix.NsecToTimespec(int64(t.Interval)), Value: unix.NsecToTimespec(value)}
	if err := unix.TimerfdSettime(fd, flags, &spec, nil); err != nil {
		return -1, fmt.Errorf("set a timerfd: %w", err)
	}
	if o.Count != 0 {
		if err := ioctlWord(fd, setTicks, o.Count); err != nil {
			return -1, fmt.Errorf("set the %d expirations of a timerfd: %w", o.Count, err)
		}
	}
	return fd, nil
}

func (r *reopener) signalFD(o *Open) (int, error) {
	var set unix.Sigset_t
	set.Val[0] = o.Count
	return r.raiseNew(unix.Signalfd(-1, &set, int(o.Flags&unix.O_NONBLOCK)))
}

func (st *State) validTimerFDs() error {
	last := -1
	for _, t := range st.TimerFDs {
		if int64(t.Open) >= int64(len(st.Opens)) || int(t.Open) <= last || st.Opens[t.Open].Kind != OpenTimerFD {
			return fmt.Errorf("a timer of description %d", t.Open)
		}
		last = int(t.Open)
	}
	return nil
}
