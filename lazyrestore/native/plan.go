package native

import (
	"cmp"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// programSize is room for the tables of a process: generous, for pages that
// are not touched cost nothing.
func programSize(st *State) int {
	steps := 256 + st.timerRoom() + 8*len(st.VMAs) + 24*len(st.Threads) + 3*len(st.FDs) +
		len(st.Guards) + len(st.Locks) + len(st.FileWatches) + 3*len(st.Displaced)
	for i := range st.VMAs {
		steps += len(st.VMAs[i].Lazy)
	}
	paths := 0
	for i := range st.Opens {
		o := &st.Opens[i]
		steps += len(o.Watches)
		if st.aboutItself(o) {
			steps, paths = steps+3, paths+len(o.Path)
		}
	}
	n := 1<<16 + paths + 160*steps + 32*len(st.Eager) + st.lookRoom()
	for _, f := range st.Files {
		n += len(f.Path) * 4
	}
	for i := range st.FileWatches {
		n += len(st.FileWatches[i].Path)
	}
	for i := range st.VMAs {
		n += len(st.VMAs[i].Name)
		if k := st.VMAs[i].Kind; k == PrivateFile || k == SharedFile {
			n += len(st.Files[st.VMAs[i].File].Path) + 32
		}
	}
	for i := range st.Threads {
		n += 256 + 4*len(st.Creds.Groups) + 8*len(st.Threads[i].Affinity) + 160*len(st.Threads[i].Pending)
	}
	return int(page.Addr(n + 160*len(st.Pending)).Up())
}

// mainSteps is about how many steps the first thread's table has.
func mainSteps(st *State) int {
	n := 256 + len(st.VMAs) + len(st.Threads) + 3*len(st.FDs)
	for i := range st.VMAs {
		n += len(st.VMAs[i].Lazy)
	}
	return n
}

// mapProgram makes the memory file for the program, which the process will
// map, and maps it here.
func (b *builder) mapProgram() (fd int, err error) {
	size := programSize(b.st)
	if b.trace != nil {
		size *= 2 // a reading of the clock for each step
	}
	low, err := proc.MemFDExec("lazyrestore-table", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	if fd, err = b.re.raise(low); err != nil {
		return -1, err
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return -1, fmt.Errorf("size the table: %w", err)
	}
	buf, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return -1, fmt.Errorf("map the table: %w", err)
	}
	base := uint64(b.st.hole())
	b.prog = &program{base: base, buf: buf, arena: proc.ArenaOver(base, buf), timed: b.trace != nil}
	return fd, nil
}

// plan writes the program. Its first page has a place for each thing that the
// stub knows of: the loop, the first table, the gate. It calls begin as soon as the
// process has something to do.
func (b *builder) plan(begin func() error) error {
	_, first := b.prog.alloc(page.Size)
	copy(first, proc.LoopCode(proc.EndTrap))
	// Its steps are not moved as they become more: fresh memory costs more than they do.
	t := &table{steps: make([]step, 0, mainSteps(b.st))}
	b.main, b.begin = t, begin
	b.closeOthers(t)
	t.part("memory")
	b.memory(t)
	t.part("userfaultfd")
	b.userfaultfd(t)
	b.lockMemory(t)
	t.part("process")
	b.process(t)
	t.part("descriptors")
	b.descriptors(t)
	t.part("threads")
	b.threads(t)
	b.ownFiles(t)
	b.watches(t)
	t.part("first thread")
	b.thread(t, &b.st.Threads[0])
	t.part("last")
	b.last(t)
	b.hand(t, true)
	return cmp.Or(b.beginErr, b.prog.err)
}

// enough hands to the process what has been planned for it, if that is much.
func (b *builder) enough(t *table) {
	if n := len(t.steps) - t.placed; n >= portionSteps || n >= firstSteps && t.placed == 0 {
		b.hand(t, false)
	}
}

// hand hands it to the process, which is started with the first of it.
func (b *builder) hand(t *table, last bool) {
	if b.beginErr != nil {
		return
	}
	if b.beginErr = b.prog.hand(t, last); b.beginErr == nil && len(t.portions) == 1 {
		b.beginErr = b.begin()
	}
}

// sendFD plans the sending of descriptor fd over the socket.
func (b *builder) sendFD(t *table, fd int) {
	p := b.prog
	iov := p.words(p.bytes([]byte{0}), 1)
	control, c := p.alloc(24)
	putWord(c, 20) // cmsg_len
	putWord(c[8:], unix.SOL_SOCKET|unix.SCM_RIGHTS<<32)
	putWord(c[16:], uint64(fd))
	msg := p.words(0, 0, iov, 1, control, 24, 0)
	t.call("send the userfaultfd", unix.SYS_SENDMSG, uint64(b.socket), msg, 0).returns(1)
}
