package native

import (
	"cmp"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

const (
	// variablesMost is how much of the variables of one file is eager: more than
	// most files have, and copied sooner than two faults are answered.
	variablesMost = 16 * page.Size
	// callersMost is how much of a stack is looked through for who called.
	callersMost = 1024
)

// variables are the pages of the variables (.bss) of the program and of the
// libraries in which threads are: in code of theirs, or about to return to it.
// The loader maps them behind the file, and they are touched as soon as the
// thread runs, while the pager is barely up. Those with content in the file are
// eager anyway.
func (c *capture) variables() []page.Range {
	var out []page.Range
	seen := make(map[uint32]bool)
	in := func(at uint64) {
		v := c.st.codeAt(page.Addr(at))
		if v == nil || seen[v.File] {
			return
		}
		seen[v.File] = true
		if r := c.st.behind(v.File); !r.Empty() {
			out = append(out, r.Intersect(page.RangeOf(r.Start, variablesMost)))
		}
	}
	buf := make([]byte, callersMost)
	for i := range c.st.Threads {
		regs := &c.st.Threads[i].Regs
		in(codeOf(regs))
		stack, _ := firstTouched(regs)
		n, _ := proc.ReadMemory(c.pid, stack, buf) // up to the end of the stack
		for words := buf[:n]; len(words) >= 8; words = words[8:] {
			in(getWord(words))
		}
	}
	return out
}

// codeAt is the mapping of a file's code that holds an address, or nil.
func (st *State) codeAt(at page.Addr) *VMA {
	i, found := slices.BinarySearchFunc(st.VMAs, at, func(v VMA, at page.Addr) int {
		if v.End <= at {
			return -1
		}
		return max(cmp.Compare(v.Start, at), 0)
	})
	if !found {
		return nil
	}
	if v := &st.VMAs[i]; v.Kind == PrivateFile && v.Prot&unix.PROT_EXEC != 0 {
		return v
	}
	return nil
}

// behind is the anonymous memory that follows the last mapping of a file.
func (st *State) behind(file uint32) (r page.Range) {
	for i := 1; i < len(st.VMAs); i++ {
		last, v := &st.VMAs[i-1], &st.VMAs[i]
		if last.Kind == PrivateFile && last.File == file && v.Kind == Anonymous && v.Start == last.End {
			r = v.Range
		}
	}
	return r
}
