package native

import (
	"sort"

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
func (k *content) variables() []page.Range {
	st, code := k.c.st, k.c.st.code()
	var out []page.Range
	seen := make(map[uint32]bool)
	in := func(at uint64) {
		v := codeAt(code, page.Addr(at))
		if v == nil || seen[v.File] {
			return
		}
		seen[v.File] = true
		if r := st.behind(v.File); !r.Empty() {
			out = append(out, r.Intersect(page.RangeOf(r.Start, variablesMost)))
		}
	}
	buf := make([]byte, callersMost)
	for i := range st.Threads {
		regs := &st.Threads[i].Regs
		in(codeOf(regs))
		stack, _ := firstTouched(regs)
		n := k.there(page.RangeOf(page.Addr(stack), callersMost)).Len()
		read, _ := proc.ReadMemory(k.c.pid, stack, buf[:n]) // up to the end of the stack
		for words := buf[:read]; len(words) >= 8; words = words[8:] {
			in(getWord(words))
		}
	}
	return out
}

// there is the beginning of r up to the first page that to read would be a fault
// for a userfaultfd: who answers might not, and the process stands still.
func (k *content) there(r page.Range) page.Range {
	if !k.c.registered {
		return r
	}
	end := r.Start
	_ = k.scan.Scan(page.Range{Start: r.Start.Down(), End: r.End.Up()}, func(run proc.PageRun) error {
		if run.Categories&(proc.PagePresent|proc.PageSwapped) != 0 && run.Start <= end {
			end = max(end, run.End)
		}
		return nil
	}) // where it fails, as behind the end of the stack, less is there
	return r.Intersect(page.Range{Start: r.Start, End: end})
}

// registeredMemory reports whether any memory of the process is registered with
// a userfaultfd.
func (c *capture) registeredMemory() bool {
	for i := range c.smaps.VMAs {
		if c.smaps.VMAs[i].Flags&proc.VMUffdMissing != 0 {
			return true
		}
	}
	return false
}

// code are the mappings of files' code, in address order.
func (st *State) code() []*VMA {
	var out []*VMA
	for i := range st.VMAs {
		if v := &st.VMAs[i]; v.Kind == PrivateFile && v.Prot&unix.PROT_EXEC != 0 {
			out = append(out, v)
		}
	}
	return out
}

// codeAt is the one of the mappings of code that holds an address, or nil.
func codeAt(code []*VMA, at page.Addr) *VMA {
	if len(code) == 0 || at < code[0].Start { // as most words on a stack
		return nil
	}
	i := sort.Search(len(code), func(i int) bool { return code[i].End > at })
	if i == len(code) || code[i].Start > at {
		return nil
	}
	return code[i]
}

// behind is the anonymous memory that follows the last mapping of a file. Huge pages
// are no variables, and too large to be eager.
func (st *State) behind(file uint32) (r page.Range) {
	for i := 1; i < len(st.VMAs); i++ {
		last, v := &st.VMAs[i-1], &st.VMAs[i]
		if last.Kind == PrivateFile && last.File == file && v.Kind == Anonymous && v.Start == last.End && v.pageSize() == page.Size {
			r = v.Range
		}
	}
	return r
}
