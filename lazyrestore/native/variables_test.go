package native

import (
	"encoding/binary"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// The variables of a file lie behind its last mapping; memory that only comes
// after them in the address space, or behind another file, does not count.
func TestVariablesOfFile(t *testing.T) {
	const code, data = unix.PROT_READ | unix.PROT_EXEC, unix.PROT_READ | unix.PROT_WRITE
	vma := func(start, end page.Addr, kind VMAKind, prot, file uint32) VMA {
		return VMA{Range: page.Range{Start: start << page.Shift, End: end << page.Shift}, Kind: kind, Prot: prot, File: file}
	}
	st := &State{VMAs: []VMA{
		vma(10, 12, PrivateFile, code, 1),
		vma(12, 13, PrivateFile, data, 1),
		vma(13, 20, Anonymous, data, 0),
		vma(20, 21, PrivateFile, code, 2),
		vma(21, 22, PrivateFile, data, 2),
		vma(23, 24, Anonymous, data, 0),
		vma(30, 31, Anonymous, code, 0),
		vma(40, 41, SharedFile, code, 3),
		vma(511, 512, PrivateFile, code, 4),
		{Range: page.Range{Start: 512 << page.Shift, End: 1024 << page.Shift}, Flags: unix.MAP_HUGETLB | 21<<mapHugeShift},
	}}
	for _, c := range []struct {
		name   string
		at     page.Addr // a page of code
		inCode bool
		file   uint32
		want   page.Range // pages
	}{
		{"a file with variables", 11, true, 1, page.Range{Start: 13, End: 20}},
		{"memory beyond a gap", 20, true, 2, page.Range{}},
		{"data is no code", 12, false, 0, page.Range{}},
		{"code without a file", 30, false, 0, page.Range{}},
		{"a shared mapping", 40, false, 0, page.Range{}},
		{"huge pages", 511, true, 4, page.Range{}},
		{"no mapping", 22, false, 0, page.Range{}},
	} {
		v := codeAt(st.code(), c.at<<page.Shift+5)
		if (v != nil) != c.inCode {
			t.Errorf("%s: found %v", c.name, v)
			continue
		}
		if v == nil {
			continue
		}
		got := st.behind(v.File)
		if v.File != c.file || got.Start>>page.Shift != c.want.Start || got.End>>page.Shift != c.want.End {
			t.Errorf("%s: file %d, variables %v, not file %d, pages %v", c.name, v.File, got, c.file, c.want)
		}
	}
}

// Eager are the variables of the file in whose code a thread is, and of those
// that it returns to, each once, and of a large file the first.
func TestVariables(t *testing.T) {
	const code = unix.PROT_READ | unix.PROT_EXEC
	stack, err := unix.Mmap(-1, 0, page.Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(stack)
	file := func(n uint32, at, pages page.Addr) []VMA {
		return []VMA{
			{Range: page.Range{Start: at << page.Shift, End: (at + 1) << page.Shift}, Kind: PrivateFile, Prot: code, File: n},
			{Range: page.Range{Start: (at + 1) << page.Shift, End: (at + 1 + pages) << page.Shift}, Kind: Anonymous},
		}
	}
	st := &State{VMAs: slices.Concat(file(0, 100, 1), file(1, 200, 1000), file(2, 2000, 1)), Threads: make([]Thread, 2)}
	const top = page.Size - 64 // the thread's stack ends with the mapping
	for i, at := range []uint64{7, 200<<page.Shift + 9, 100<<page.Shift + 1} {
		binary.NativeEndian.PutUint64(stack[top+8*i:], at)
	}
	for i := range st.Threads {
		st.Threads[i].Regs[proc.RIP] = 100 << page.Shift
		st.Threads[i].Regs[proc.RSP] = uint64(addressOf(stack)) + top
	}
	k := &content{c: &capture{pid: os.Getpid(), st: st}}
	got := k.variables()
	want := []page.Range{page.RangeOf(101<<page.Shift, page.Size), page.RangeOf(201<<page.Shift, variablesMost)}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// Of memory that is with a userfaultfd nothing is read that is missing: nobody might
// answer.
func TestVariablesWithoutFault(t *testing.T) {
	stack, err := unix.Mmap(-1, 0, 4*page.Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(stack)
	stack[0], stack[page.Size], stack[3*page.Size] = 1, 1, 1
	scan, err := proc.NewPageScanner(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer scan.Close()
	at := page.Addr(addressOf(stack))
	for _, c := range []struct {
		name     string
		flags    proc.VMFlags
		from, to page.Addr
		want     uint64
	}{
		{"not registered", 0, 100, 3 * page.Size, 3*page.Size - 100},
		{"up to a missing page", proc.VMUffdMissing, 100, 3 * page.Size, 2*page.Size - 100},
		{"all there", proc.VMUffdMissing, 100, page.Size + 8, page.Size - 92},
		{"missing from the first", proc.VMUffdMissing, 2*page.Size + 8, 4 * page.Size, 0},
	} {
		k := &content{c: newCapture(os.Getpid()), scan: scan}
		k.c.smaps.VMAs = []proc.VMA{{Range: page.RangeOf(at, 4*page.Size), Flags: c.flags}}
		k.c.registered = k.c.registeredMemory()
		if got := k.there(page.Range{Start: at + c.from, End: at + c.to}); got.Start != at+c.from || got.Len() != c.want {
			t.Errorf("%s: %v, not %d bytes from %v on", c.name, got, c.want, at+c.from)
		}
	}
}
