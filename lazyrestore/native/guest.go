package native

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A process that was restored in a space of its own (space.go) can be saved
// again from outside. Its image is as that of any other: it has the ids that the
// process knows. Whether the next restore makes a space is for that to say.

// guest looks whether the process is one, in a space that is as a restore makes
// it, and refuses what would end with the space.
func (c *capture) guest() (bool, error) {
	guest, others, err := proc.ReadGuest(c.pid, &c.status)
	if err != nil || !guest {
		return false, err
	}
	for _, id := range others {
		c.refused.add("process "+strconv.Itoa(id)+" of its pid namespace", "an image holds one process, with which all of its namespace ends",
			"let it end first")
	}
	foreign, err := foreignMounts(c.pid)
	for _, m := range foreign {
		c.refused.add("mount "+m.Point+" ("+m.Type+")", "it is there only for the process, or only for this command", "mount it for both, or for none")
	}
	return true, err
}

// foreignMounts are those that only a process has, or only this command. What
// comes or goes for both between one reading and the other looks like that
// once; so they are those that do each time.
func foreignMounts(pid int) ([]proc.Mount, error) {
	var foreign []proc.Mount
	for n := range 16 {
		theirs, err1 := proc.ReadMounts(pid)
		ours, err2 := proc.ReadMounts(unix.Getpid())
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		differing := differingMounts(ours, theirs)
		if n == 0 {
			foreign = differing
		}
		foreign = slices.DeleteFunc(foreign, func(m proc.Mount) bool { return !slices.Contains(differing, m) })
		if len(foreign) == 0 {
			break
		}
	}
	return foreign, nil
}

// differingMounts are those that not both have, but for the /proc that a space
// has for itself.
func differingMounts(ours, theirs []proc.Mount) (differing []proc.Mount) {
	left := make(map[proc.Mount]int)
	for _, m := range ours {
		left[m]++
	}
	own := false
	for _, m := range theirs {
		switch {
		case left[m] > 0:
			left[m]--
		case !own && m.Point == "/proc" && m.Type == "proc" && m.Root == "/":
			own = true
		default:
			differing = append(differing, m)
		}
	}
	for _, m := range ours {
		if left[m] > 0 {
			left[m]--
			differing = append(differing, m)
		}
	}
	return differing
}

// innerID is the id of a task in its own pid namespace.
func innerID(s *proc.Status) int {
	if n := len(s.NSpid); n > 0 {
		return s.NSpid[n-1]
	}
	return s.Pid
}

// toInner turns our ids in the state, by which everything was asked, into those
// that the process knows.
func (c *capture) toInner() error {
	st := c.st
	var missing []error
	inner := func(id int) int {
		to, ok := c.inner[id]
		if !ok {
			missing = append(missing, fmt.Errorf("task %d is not one of process %d", id, c.pid))
		}
		return to
	}
	st.PID = inner(st.PID)
	for i := range st.Threads {
		st.Threads[i].TID = inner(st.Threads[i].TID)
	}
	for i := range st.PosixTimers {
		if t := &st.PosixTimers[i]; t.Notify&sigevThreadID != 0 {
			t.TID = inner(t.TID)
		}
	}
	for i := range st.Opens {
		if o := &st.Opens[i]; o.Owner != 0 {
			o.Owner = o.Owner&^0xffffffff | int64(inner(int(int32(o.Owner))))
		}
	}
	return errors.Join(missing...)
}
