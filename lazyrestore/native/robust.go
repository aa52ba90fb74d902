package native

import (
	"encoding/binary"
	"slices"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

func getWord(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }

// robustLimit is how many entries of a robust list the kernel looks at:
// ROBUST_LIST_LIMIT in <linux/futex.h>.
const robustLimit = 2048

// robustPages are the pages of all entries of the threads' robust lists, and
// of the futexes that they stand for: the kernel walks the lists when a thread
// ends, and gives up at a page that is missing. A list that leads nowhere ends
// there, as it would for the kernel.
//
// Of the futexes that a thread holds, which the kernel gives up when the thread ends, the
// addresses are noted.
func (c *capture) robustPages() []page.Range {
	if c.abandoned {
		return nil // there will be no image
	}
	var out []page.Range
	word := func(at uint64, n int) (uint64, bool) {
		b := make([]byte, 8)
		if _, err := proc.ReadMemory(c.pid, at, b[:n]); err != nil {
			return 0, false
		}
		out = append(out, page.Range{Start: page.Addr(at).Down(), End: page.Addr(at + uint64(n)).Up()})
		return getWord(b), true
	}
	for i := range c.st.Threads {
		tid, head := uint64(c.inner[c.st.Threads[i].TID]), c.st.Threads[i].RobustList
		futex := func(at uint64) {
			const owner = 0x3fffffff // FUTEX_TID_MASK
			if w, ok := word(at, 4); ok && w&owner == tid {
				c.held = append(c.held, page.Addr(at))
			}
		}
		if head == 0 {
			continue
		}
		// struct robust_list_head: list.next, futex_offset, list_op_pending
		next, ok1 := word(head, 8)
		offset, ok2 := word(head+8, 8)
		pending, ok3 := word(head+16, 8)
		if !ok1 || !ok2 || !ok3 {
			continue
		}
		if pending &^= 1; pending != 0 {
			futex(pending + offset)
		}
		for range robustLimit {
			next &^= 1 // the low bit marks a priority-inheriting futex
			if next == head || next == 0 {
				break
			}
			futex(next + offset)
			var ok bool
			if next, ok = word(next, 8); !ok {
				break
			}
		}
	}
	return out
}

// heldInFiles refuses a process that is to be ended and holds robust futexes in files that
// stay: the kernel would mark them there as given up by one who died, and a restore would
// find a file that has changed, or a lock that is lost.
func (c *capture) heldInFiles() {
	for i := range c.st.VMAs {
		v := &c.st.VMAs[i]
		if v.Kind == SharedFile && slices.ContainsFunc(c.held, v.Contains) {
			c.refused.add("mapped file "+c.st.Files[v.File].Path, "a thread holds a robust mutex in it, which the kernel gives up when the process ends",
				"try again when it is unlocked, or let the process run on (--leave-running)")
		}
	}
}
