package native

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// places gives out the numbers of the descriptors that the new process
// inherits: those that it does not use itself. They are as low as can be: a
// table of descriptors that threads share, as ours is, grows by waiting for all
// processors (some 10 ms each time).
type places struct {
	used []int // by the process, ascending
	next int   // where to look for the next
}

// placesBeside leaves out what the process uses, and the standard streams.
func placesBeside(st *State) *places {
	p := &places{next: 3}
	for _, f := range st.FDs {
		p.used = append(p.used, f.Num)
	}
	if len(st.Displaced) > 0 {
		for _, w := range st.Displaced {
			p.used = append(p.used, st.Opens[w.Open].Watches[w.Index].FD)
		}
		slices.Sort(p.used)
		p.used = slices.Compact(p.used)
	}
	return p
}

// free is the first number from n on that the process does not use.
func (p *places) free(n int) int {
	i, _ := slices.BinarySearch(p.used, n)
	for i < len(p.used) && p.used[i] == n {
		i, n = i+1, n+1
	}
	return n
}

// reserve has the table grow once, where it has to, for n descriptors. What
// cannot be is told when they are made.
func (p *places) reserve(n int) {
	const usual = 64 // that every table has room for
	last := p.next
	for ; n > 0; n-- {
		last = p.free(last) + 1
	}
	if last <= usual {
		return
	}
	if fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, last); err == nil {
		unix.Close(fd)
	}
}

// dup duplicates a descriptor to a place of its own.
func (p *places) dup(fd int) (int, error) {
	for n := p.free(p.next); ; {
		up, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD, n)
		if err != nil {
			return -1, fmt.Errorf("duplicate descriptor %d above %d: %w", fd, n, err)
		}
		p.next = up + 1
		if p.free(up) == up {
			return up, nil
		}
		unix.Close(up)
		n = p.free(p.next)
	}
}

// runs are runs of numbers, from and up to.
func runs(nums []int) [][2]uint64 {
	sorted := slices.Sorted(slices.Values(nums))
	var out [][2]uint64
	for _, n := range sorted {
		if k := len(out); k > 0 && out[k-1][1]+1 >= uint64(n) {
			out[k-1][1] = uint64(n)
			continue
		}
		out = append(out, [2]uint64{uint64(n), uint64(n)})
	}
	return out
}

// closeOthers plans to close all that the process has inherited and is not of
// the restore: what this command was started with.
func (b *builder) closeOthers(t *table) {
	from := uint64(0)
	for _, r := range runs(b.re.owned) {
		if r[0] > from {
			t.call("close what is not the restore's", unix.SYS_CLOSE_RANGE, from, r[0]-1, 0)
		}
		from = r[1] + 1
	}
	t.call("close what is not the restore's", unix.SYS_CLOSE_RANGE, from, 1<<32-1, 0)
}

// closeOwn plans to close what is of the restore.
func (b *builder) closeOwn(t *table) {
	for _, r := range runs(b.re.owned) {
		t.call("close what the restore had open", unix.SYS_CLOSE_RANGE, r[0], r[1], 0)
	}
}
