package native

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// Soft limits of the restoring command do not bound a process that is built, which has its own in the end. Where there are none
// nothing is done.
func TestLimitsOfTheRestoringCommand(t *testing.T) {
	const base, none = 1 << 40, ^uint64(0)
	for _, tt := range []struct {
		name   string
		limit  int
		own    Limit
		locked bool
		want   bool
	}{
		{"no limit", unix.RLIMIT_DATA, Limit{none, none}, false, false},
		{"hard", unix.RLIMIT_DATA, Limit{1 << 20, 1 << 20}, false, false},
		{"data", unix.RLIMIT_DATA, Limit{1 << 20, none}, false, true},
		{"address space", unix.RLIMIT_AS, Limit{1 << 20, 1 << 40}, false, true},
		{"locked memory", unix.RLIMIT_MEMLOCK, Limit{1 << 20, 1 << 30}, true, true},
		{"locked memory of which there is none", unix.RLIMIT_MEMLOCK, Limit{1 << 20, 1 << 30}, false, false},
		{"another", unix.RLIMIT_NOFILE, Limit{1024, 1 << 20}, true, false},
	} {
		st := &State{Limits: make([]Limit, unix.RLIMIT_RTPRIO)}
		b := &builder{st: st}
		for i := range st.Limits {
			st.Limits[i] = Limit{none, none}
			b.limits = append(b.limits, Limit{none, none})
		}
		st.Limits[tt.limit], b.limits[tt.limit] = tt.own, tt.own // the process had the same
		if tt.locked {
			st.Locked = []LockedRange{{Range: page.RangeOf(base, page.Size)}}
		}
		buf := make([]byte, 16*page.Size)
		b.prog = &program{base: base, buf: buf, arena: proc.ArenaOver(base, buf)}
		var raised, last table
		sets := func(s step) bool { return s.NR == unix.SYS_PRLIMIT64 && s.Args[1] == uint64(tt.limit) }
		b.raiseLimits(&raised)
		if got := slices.ContainsFunc(raised.steps, sets); got != tt.want || len(raised.steps) > 1 {
			t.Errorf("%s: it is raised: %v by %d steps, want %v", tt.name, got, len(raised.steps), tt.want)
		}
		b.setLimits(&last)
		if got := slices.ContainsFunc(last.steps, sets); got != tt.want {
			t.Errorf("%s: its own is set in the end: %v, want %v", tt.name, got, tt.want)
		}
	}
}
