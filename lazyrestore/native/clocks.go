package native

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Clocks are the clocks that begin with a boot, as the process last could read
// them. They must not go back when it does: on a machine that was started
// later the process gets a time namespace of its own, in which they go on.
type Clocks struct {
	Monotonic, Boottime uint64 // nanoseconds; 0: not known
}

// clocks codes section 68.
func (c *coder) clocks(st *State) {
	c.u64(&st.Clocks.Monotonic)
	c.u64(&st.Clocks.Boottime)
}

// askClocks asks the process: it may live in a time namespace.
func (q *questions) askClocks() []asked {
	ask := func(clock uint64, into *uint64) asked {
		at := q.room(16)
		return asked{call(unix.SYS_CLOCK_GETTIME, clock, q.at+at), func(int64) {
			*into = q.word(at)*uint64(time.Second) + q.word(at+8)
		}}
	}
	clocks := &q.f.c.st.Clocks
	return []asked{ask(unix.CLOCK_MONOTONIC, &clocks.Monotonic), ask(unix.CLOCK_BOOTTIME, &clocks.Boottime)}
}

// bootClock is one of the clocks that a time namespace sets.
type bootClock struct {
	name string // in timens_offsets
	id   int32
	then uint64
}

// timeOffsets is what has to be written to timens_offsets for a new process
// whose clocks must not go back; empty where they do not, which costs two
// readings of the clock.
func (b *builder) timeOffsets() (string, error) {
	clocks := [...]bootClock{
		{"monotonic", unix.CLOCK_MONOTONIC, b.st.Clocks.Monotonic},
		{"boottime", unix.CLOCK_BOOTTIME, b.st.Clocks.Boottime},
	}
	var out strings.Builder
	for _, c := range clocks {
		var ts unix.Timespec
		if err := unix.ClockGettime(c.id, &ts); err != nil {
			return "", fmt.Errorf("read the clock %s: %w", c.name, err)
		}
		behind := int64(c.then) - ts.Nano()
		if c.then == 0 || behind <= 0 {
			continue
		}
		own, err := ownOffset(c.name)
		if err != nil {
			return "", err
		}
		offset := behind + own
		sec := offset / int64(time.Second)
		if offset < 0 && offset%int64(time.Second) != 0 {
			sec--
		}
		fmt.Fprintf(&out, "%s %d %d\n", c.name, sec, offset-sec*int64(time.Second))
	}
	return out.String(), nil
}

// ownOffset is how far a clock of the calling process is ahead of the
// machine's, in nanoseconds: offsets count from that.
func ownOffset(clock string) (int64, error) {
	text, err := os.ReadFile("/proc/self/timens_offsets")
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil // no time namespaces: the making of one will tell
	}
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == clock {
			sec, err1 := strconv.ParseInt(f[1], 10, 64)
			nsec, err2 := strconv.ParseInt(f[2], 10, 64)
			return sec*int64(time.Second) + nsec, errors.Join(err1, err2)
		}
	}
	return 0, fmt.Errorf("timens_offsets does not tell of the clock %s: %q", clock, text)
}

// inItsTime looks whether the new process has come into the time namespace
// that was made for it: before Linux 6.3 an execve does not lead there.
func (b *builder) inItsTime(pid int) error {
	own, err := os.Readlink("/proc/self/ns/time")
	if err != nil {
		return err
	}
	for {
		// The execve is not over when its child lets us go on; it is when the
		// stub sleeps at its gate.
		stat, err := proc.ReadStat(pid)
		if err != nil {
			return err
		}
		theirs, err := proc.ReadLink(pid, "ns/time")
		switch {
		case err != nil:
			return err
		case theirs != own:
			return nil
		case strings.ContainsRune("SZX", rune(stat.State)): // asleep, or ended
			return b.backwards(errors.New("this kernel does not change the time namespace at an execve (Linux 6.3 does)"))
		}
	}
}

// backwards refuses to have the clocks run backwards.
func (b *builder) backwards(why error) error {
	var r reasons
	r.add("the clock", fmt.Sprintf("CLOCK_MONOTONIC was at %v when the process was saved; on this machine, started later, it would run backwards, and a time namespace cannot be had: %v",
		time.Duration(b.st.Clocks.Monotonic).Round(time.Second), why), "restore as root (CAP_SYS_ADMIN and CAP_SYS_TIME), or later")
	return r.err()
}
