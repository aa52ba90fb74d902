package native

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// taskSize is the end of what a process with four-level page tables may map.
const taskSize = 0x7ffffffff000

// advice are the madvise(2) values of the bits in VMA.Advice, with the letters
// that /proc/PID/smaps shows for them.
var advice = [...]struct {
	flag  string
	value uint64
}{
	{"sr", unix.MADV_SEQUENTIAL},
	{"rr", unix.MADV_RANDOM},
	{"dc", unix.MADV_DONTFORK},
	{"dd", unix.MADV_DONTDUMP},
	{"hg", unix.MADV_HUGEPAGE},
	{"nh", unix.MADV_NOHUGEPAGE},
	{"mg", unix.MADV_MERGEABLE},
	{"wf", unix.MADV_WIPEONFORK},
}

// Places in the list of advice.
const (
	adviceSmall      = 5 // no huge pages
	adviceWipeOnFork = 7
)

// iovMax is how many buffers one preadv(2) takes.
const iovMax = 1024

// memory plans the address space: everything of the loop's own process image
// is unmapped, then the mappings are made in address order, then the eager
// pages are read into them, and only then are the lazy ranges of those mappings
// registered, for the kernel may not touch a registered page that is missing.
func (b *builder) memory(t *table) {
	base, end := b.prog.base, b.prog.base+uint64(len(b.prog.buf))
	t.call("unmap all below the table", unix.SYS_MUNMAP, 0, base)
	t.call("unmap all above the table", unix.SYS_MUNMAP, end, taskSize-end)
	// A huge page made by an eager write would fill its neighbours with zeros
	// that hide their real content: none until the ranges are registered.
	t.call("disable huge pages", unix.SYS_PRCTL, unix.PR_SET_THP_DISABLE, 1)
	b.raiseLimits(t)

	// The kernel looks through all mappings for both of these: while there are none.
	b.mmFields(t)
	if v := &b.st.VDSO; v.Map != 0 {
		t.call("map the vDSO", unix.SYS_ARCH_PRCTL, archMapVDSO, uint64(v.Map)).by(v.Map)
		// Which takes the address as a hint, and does not say where it is: this fails
		// where nothing is mapped.
		t.call("find the vDSO", unix.SYS_MSYNC, uint64(v.Map), v.Size, unix.MS_ASYNC).by(v.Map)
	}
	b.openUserfaultfd(t)
	b.eager = page.SetOf(eagerRanges(b.st.Eager)...)
	own, beside := b.st.partEager()
	b.beside = beside
	b.mapAll(t)
	b.policies(t)
	b.tellMapped(t)
	b.eagerPages(t, own)
	b.awaitBeside(t)
	for i := range b.st.VMAs {
		v := &b.st.VMAs[i]
		for range b.eager.Within(v.Range) {
			if v.Prot&unix.PROT_WRITE == 0 {
				t.call("protect", unix.SYS_MPROTECT, uint64(v.Start), v.Len(), uint64(v.Prot)).by(v.Start)
			}
			break
		}
		b.advise(t, v)
		b.enough(t)
	}
	for _, g := range b.st.Guards {
		t.call("install the guard region", unix.SYS_MADVISE, uint64(g.Start), g.Len(), madvGuardInstall).by(g.Start)
		b.enough(t)
	}
}

// mmFields plans prctl(PR_SET_MM_MAP), which also sets the executable's link:
// no mapping of the stub's own executable may be left by then. Arguments and
// environment are empty for now: whoever reads /proc/PID/cmdline or environ has
// the kernel touch their pages, and until those are registered it puts zeros there
// that nobody can take away.
func (b *builder) mmFields(t *table) {
	const fd = 0
	t.call("open the executable", unix.SYS_OPENAT, atFDCWD, b.prog.cstring(b.st.Exe.Path), unix.O_RDONLY|unix.O_CLOEXEC).on(b.st.Exe.Path).returns(fd)
	mm := b.st.MM
	mm.ArgEnd, mm.EnvEnd = mm.ArgStart, mm.EnvStart
	b.setMM(t, "set the memory layout", &mm, fd)
	t.call("close the executable", unix.SYS_CLOSE, fd)
}

// arguments plans to tell the kernel where arguments and environment are, once all
// is registered.
func (b *builder) arguments(t *table) {
	const none = 1<<32 - 1 // no executable: for that alone it looks through the mappings
	b.setMM(t, "set where the arguments are", &b.st.MM, none)
}

func (b *builder) setMM(t *table, what string, mm *MM, exe uint64) {
	arg := b.prog.words(
		mm.StartCode, mm.EndCode, mm.StartData, mm.EndData, mm.StartBrk, mm.Brk, mm.StartStack,
		mm.ArgStart, mm.ArgEnd, mm.EnvStart, mm.EnvEnd, b.prog.bytes(b.st.Auxv), uint64(len(b.st.Auxv))|exe<<32)
	const size = 13 * 8 // struct prctl_mm_map: its last word is auxv_size and exe_fd, 32 bits each
	t.call(what, unix.SYS_PRCTL, unix.PR_SET_MM, unix.PR_SET_MM_MAP, arg, size, 0)
}

// mapAll maps everything, in address order.
func (b *builder) mapAll(t *table) {
	protection := func(v *VMA) uint32 {
		for range b.eager.Within(v.Range) {
			return v.Prot | unix.PROT_WRITE
		}
		return v.Prot
	}
	b.small = mapsSmall()
	b.fileFD = 0 // the lowest that is free
	if b.lazy() {
		b.fileFD = 1
	}
	opened := -1 // which file is open as that
	for rest := b.st.VMAs; len(rest) > 0; {
		v, n := &rest[0], b.alike(rest)
		if v.Kind == PrivateFile || v.Kind == SharedFile {
			opened = b.openMapped(t, v, opened)
		}
		switch {
		case v.Kind == PrivateFile:
			n = oneFile(rest, protection)
			b.mapOne(t, v, page.Range{Start: v.Start, End: rest[n-1].End}, protection(v))
			b.unregistered = append(b.unregistered, rest[:n]...)
		case n > 1:
			b.mapAlike(t, rest[:n], protection)
		default:
			b.mapOne(t, v, v.Range, protection(v))
			b.unregistered = append(b.unregistered, *v)
		}
		rest = rest[n:]
		b.enough(t)
	}
	if opened >= 0 {
		t.call("close", unix.SYS_CLOSE, b.fileFD)
	}
}

// mostAlike is how many mappings are made by one call: more of them would come
// late for the process, which waits for them to be planned.
const mostAlike = 64

// alike is how many of the mappings vs, from the first on, differ in nothing but
// their protection and have no gap between them, as thread stacks and their guards:
// to map all of them at once and then change what differs takes two thirds of the
// time of mapping each. Code is not among them: that memory becomes executable may
// be forbidden where mapping it is not.
func (b *builder) alike(vs []VMA) int {
	first := &vs[0]
	if first.Kind != Anonymous || first.Flags&^unix.MAP_NORESERVE != 0 || first.Prot&unix.PROT_EXEC != 0 {
		return 1
	}
	n := 1
	for n < min(len(vs), mostAlike) {
		v := &vs[n]
		if v.Kind != first.Kind || v.Flags != first.Flags || v.Prot&unix.PROT_EXEC != 0 || v.Start != vs[n-1].End || b.smallMap(v) != b.smallMap(first) {
			break
		}
		n++
	}
	return n
}

// oneFile is how many of the mappings vs, from the first on, are of one private file
// and follow each other in it as they do in memory, with the same protection until
// the eager pages are written: relocated data that nobody may write to any more, and
// the data behind it. To the kernel that is one mapping, however it is made.
func oneFile(vs []VMA, protection func(*VMA) uint32) int {
	n := 1
	for n < len(vs) {
		v, last := &vs[n], &vs[n-1]
		if v.Kind != PrivateFile || v.File != last.File || v.Write != last.Write || v.Flags != last.Flags ||
			v.Start != last.End || v.Offset != last.Offset+last.Len() || protection(v) != protection(last) {
			break
		}
		n++
	}
	return n
}

// mapAlike maps neighbours with the protection of the first that nobody may write
// to, for memory that may be written to counts as needed, and gives the others
// theirs. As long as it is one mapping it is registered at once, unless the kernel
// has still to write to it.
func (b *builder) mapAlike(t *table, vs []VMA, protection func(*VMA) uint32) {
	whole := page.Range{Start: vs[0].Start, End: vs[len(vs)-1].End}
	most := protection(&vs[0])
	for i := range vs {
		if p := protection(&vs[i]); p&unix.PROT_WRITE == 0 {
			most = p
			break
		}
	}
	b.mapOne(t, &vs[0], whole, most)
	written := false
	for range b.eager.Within(whole) {
		written = true
		break
	}
	if written {
		b.unregistered = append(b.unregistered, vs...)
	} else {
		b.register(t, vs)
	}
	for len(vs) > 0 {
		prot, n := protection(&vs[0]), 1
		for n < len(vs) && protection(&vs[n]) == prot {
			n++
		}
		if prot != most {
			at := vs[0].Start
			t.call("protect", unix.SYS_MPROTECT, uint64(at), uint64(vs[n-1].End-at), uint64(prot)).by(at)
		}
		vs = vs[n:]
	}
}

// smallMap reports whether v is to have no huge pages, and gets that with its
// mapping.
func (b *builder) smallMap(v *VMA) bool {
	return b.small && v.Kind == Anonymous && v.Advice&(1<<adviceSmall) != 0 && v.Flags&mapDroppable == 0
}

const madvGuardInstall = 102 // MADV_GUARD_INSTALL, Linux 6.13

func eagerRanges(es []Eager) []page.Range {
	var rs []page.Range
	for _, e := range es {
		if e.Shared == 0 {
			rs = append(rs, e.Range)
		}
	}
	return rs
}

// openMapped opens v's file as the lowest descriptor that is free, unless it is the
// one that is open already.
func (b *builder) openMapped(t *table, v *VMA, opened int) int {
	// The same file opened for reading and for writing counts as two.
	id := int(v.File) * 2
	flags := uint64(unix.O_RDONLY)
	if v.Write {
		id, flags = id+1, unix.O_RDWR
	}
	if id == opened {
		return id
	}
	if opened >= 0 {
		t.call("close", unix.SYS_CLOSE, b.fileFD)
	}
	path := b.st.Files[v.File].Path
	t.call("open", unix.SYS_OPENAT, atFDCWD, b.prog.cstring(path), flags|unix.O_CLOEXEC).on(path).returns(b.fileFD)
	return id
}

// mapOne maps r as v is.
func (b *builder) mapOne(t *table, v *VMA, r page.Range, prot uint32) {
	flags := uint64(v.Flags) | unix.MAP_FIXED_NOREPLACE
	fd, off, about := ^uint64(0), v.Offset, "memory"
	switch v.Kind {
	case Anonymous:
		flags |= unix.MAP_ANONYMOUS
		if v.Flags&mapDroppable == 0 {
			flags |= unix.MAP_PRIVATE
		}
		off = 0
	case PrivateMemory:
		flags |= unix.MAP_PRIVATE
		fd, about = uint64(b.sharedFDs[v.File]), b.st.Shared[v.File].Name
	case PrivateFile:
		flags |= unix.MAP_PRIVATE
		fd, about = b.fileFD, b.st.Files[v.File].Path
	case SharedFile:
		flags |= unix.MAP_SHARED
		fd, about = b.fileFD, b.st.Files[v.File].Path
	case SharedMemory:
		flags |= unix.MAP_SHARED
		fd, about = uint64(b.sharedFDs[v.File]), b.st.Shared[v.File].Name
	}
	if b.smallMap(v) {
		flags |= unix.MAP_STACK
	}
	t.call("map", unix.SYS_MMAP, uint64(r.Start), r.Len(), uint64(prot), flags, fd, off).on(about).by(r.Start).returns(uint64(r.Start))
}

func (b *builder) advise(t *table, v *VMA) {
	for i, a := range advice {
		if v.Flags&mapDroppable != 0 {
			break // it has them by itself
		}
		if v.Advice&(1<<i) != 0 && !(i == adviceSmall && b.smallMap(v)) {
			t.call("madvise "+a.flag, unix.SYS_MADVISE, uint64(v.Start), v.Len(), a.value).by(v.Start)
		}
	}
	if v.Name != "" {
		t.call("name", unix.SYS_PRCTL, unix.PR_SET_VMA, unix.PR_SET_VMA_ANON_NAME, uint64(v.Start), v.Len(), b.prog.cstring(v.Name)).by(v.Start).mayFail()
	}
}

// eagerPages reads runs of eager.raw into the mappings, as many at a time as one
// system call takes. Each page is an exception of the kernel's meanwhile. Without
// any, by process_vm_writev(2), the file would have to be mapped, which costs more.
func (b *builder) eagerPages(t *table, runs []eagerRun) {
	var off, n uint64
	var iov []uint64
	flush := func() {
		if len(iov) == 0 {
			return
		}
		t.call("read the eager pages", unix.SYS_PREADV, uint64(b.eagerFD), b.prog.words(iov...), uint64(len(iov)/2), off).returns(n)
		n, iov = 0, iov[:0]
	}
	for _, r := range runs {
		// One call reads less than 2 GiB, whatever it is asked for.
		const most = 1 << 30
		for at := r.Start; at < r.End; at += most {
			part := r.Intersect(page.RangeOf(at, most))
			here := r.off + uint64(at-r.Start)
			if n+part.Len() > most || here != off+n || len(iov) == 2*iovMax {
				flush()
				off = here
			}
			iov = append(iov, uint64(part.Start), part.Len())
			n += part.Len()
		}
	}
	flush()
}

// lazy reports whether any memory is to be registered.
func (b *builder) lazy() bool {
	return slices.ContainsFunc(b.st.VMAs, func(v VMA) bool { return len(v.Lazy) > 0 })
}

const userfaultfdFD = 0 // the lowest that is free

// openUserfaultfd plans the making of the userfaultfd.
func (b *builder) openUserfaultfd(t *table) {
	if !b.lazy() {
		return
	}
	t.call("open a userfaultfd", unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK).returns(userfaultfdFD)
	request, api := uffd.APIRequest(b.features)
	t.call("enable userfaultfd features", unix.SYS_IOCTL, userfaultfdFD, request, b.prog.words(api[:]...))
}

// userfaultfd plans the registration of all lazy ranges that are not registered
// yet, and the sending of the userfaultfd's descriptor to the one who restores.
func (b *builder) userfaultfd(t *table) {
	if !b.lazy() {
		return
	}
	b.register(t, b.unregistered)
	b.lookAround(t)
	b.sendFD(t, userfaultfdFD)
	t.call("close the userfaultfd", unix.SYS_CLOSE, userfaultfdFD)
}

// register plans the registration of the lazy ranges of vs, neighbours joined, and of
// nothing else: the pager has to know what is registered.
func (b *builder) register(t *table, vs []VMA) {
	var r page.Range
	flush := func() {
		if !r.Empty() {
			request, arg := uffd.RegisterRequest(uint64(r.Start), r.Len(), uffd.ModeMissing)
			t.call("register", unix.SYS_IOCTL, userfaultfdFD, request, b.prog.words(arg[:]...)).by(r.Start)
			b.enough(t)
		}
	}
	for i := range vs {
		for _, next := range vs[i].Lazy {
			if !r.Empty() && next.Start == r.End {
				r.End = next.End
				continue
			}
			flush()
			r = next
		}
	}
	flush()
}

// mappings says for the pager which image addresses fill the lazy ranges. The files of shared objects that are lazy are
// in files.
func (st *State) mappings(files []objectID) []page.Mapping {
	n := 0
	for i := range st.VMAs {
		n += len(st.VMAs[i].Lazy)
	}
	out := make([]page.Mapping, 0, n)
	for i := range st.VMAs {
		v := &st.VMAs[i]
		for _, r := range v.Lazy {
			m := page.Mapping{Range: r, Image: r.Start, PageSize: v.pageSize()}
			if v.Kind == SharedMemory {
				if m.Range = r.Intersect(st.withContent(v)); m.Empty() {
					continue // an early build may have registered more
				}
				o := &st.Shared[v.File]
				m.Image = o.Image + page.Addr(v.Offset) + (m.Start - v.Start)
				m.Shared = true
				m.Object = page.Object{Range: page.RangeOf(o.Image, uint64(page.Addr(o.Size).Up())), Dev: files[v.File].dev, Inode: files[v.File].ino}
			}
			out = append(out, m)
		}
	}
	return out
}
