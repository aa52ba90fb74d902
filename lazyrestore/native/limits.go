package native

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// raiseLimits plans that the restoring command's soft limits of memory are out of the way while the process is built, of which they
// say nothing: it gets its own in the end. What is hard holds for it as it does for the command.
func (b *builder) raiseLimits(t *table) {
	for _, i := range [...]int{unix.RLIMIT_AS, unix.RLIMIT_DATA, unix.RLIMIT_MEMLOCK} {
		if i >= len(b.limits) || i == unix.RLIMIT_MEMLOCK && len(b.st.Locked) == 0 {
			continue
		}
		if l := &b.limits[i]; l.Cur < l.Max {
			l.Cur = l.Max
			t.call("raise the resource limit", unix.SYS_PRLIMIT64, 0, uint64(i), b.prog.words(l.Cur, l.Max), 0).on(strconv.Itoa(i))
		}
	}
}

// setLimits plans the limits that the process had.
func (b *builder) setLimits(t *table) {
	for i, l := range b.st.Limits {
		if i < len(b.limits) && b.limits[i] == l {
			continue
		}
		t.call("set the resource limit", unix.SYS_PRLIMIT64, 0, uint64(i), b.prog.words(l.Cur, l.Max), 0).on(strconv.Itoa(i))
	}
}
