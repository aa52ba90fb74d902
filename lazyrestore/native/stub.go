package native

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// The stub is the executable that becomes the process: one page, made for
// each restore, with no code but the loop that runs tables of system calls.
// Its own table maps the program and goes on there, so that nothing of the
// stub is mapped when the program sets the link to the real executable.

const (
	elfHeaderSize  = 64
	elfPhdrSize    = 56
	stubTableStart = 1024
)

// Places in the program's first page, behind the loop: the table that the stub
// goes on with, and the word at which it waits until it is traced: the stop at
// its end would else be one that nobody sees.
const (
	firstTable = page.Size / 2
	gateOffset = page.Size - 8
)

// stubImage is the stub as an ELF executable for address at, which maps the
// program of size bytes from descriptor fd at base, waits at the gate, and
// starts the program's first table.
func stubImage(at, base, size uint64, fd int) ([]byte, error) {
	img := make([]byte, page.Size)
	entry := at + elfHeaderSize + 2*elfPhdrSize
	putELF(img, at, entry)
	code := entryCode(at+stubTableStart, proc.LoopCode(proc.EndTrap))
	if elfHeaderSize+2*elfPhdrSize+len(code) > stubTableStart {
		return nil, errors.New("the loop has outgrown the stub")
	}
	copy(img[elfHeaderSize+2*elfPhdrSize:], code)

	const rwx = unix.PROT_READ | unix.PROT_WRITE | unix.PROT_EXEC
	calls := []proc.Call{
		{NR: unix.SYS_MMAP, Args: [6]uint64{base, size, rwx, unix.MAP_SHARED | unix.MAP_FIXED_NOREPLACE, uint64(fd), 0}},
		{NR: unix.SYS_FUTEX | proc.MayFail, Args: [6]uint64{base + gateOffset, futexWait, 0}}, // EAGAIN: it is open
		proc.Jump(base, base+firstTable),
	}
	proc.AppendTable(img[stubTableStart:stubTableStart], calls)
	return img, nil
}

const (
	futexWait = 0 // FUTEX_WAIT, between processes
	futexWake = 1
)

// putELF writes the header of a static executable of one page that may be
// read, written and executed, with a stack that may not be executed.
func putELF(b []byte, at, entry uint64) {
	le := binary.LittleEndian
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2) // ET_EXEC
	le.PutUint16(b[18:], elfMachine)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], entry)
	le.PutUint64(b[32:], elfHeaderSize) // program headers
	le.PutUint16(b[52:], elfHeaderSize)
	le.PutUint16(b[54:], elfPhdrSize)
	le.PutUint16(b[56:], 2)
	ph := b[elfHeaderSize:]
	le.PutUint32(ph, 1)     // PT_LOAD
	le.PutUint32(ph[4:], 7) // RWX
	le.PutUint64(ph[16:], at)
	le.PutUint64(ph[24:], at)
	le.PutUint64(ph[32:], page.Size)
	le.PutUint64(ph[40:], page.Size)
	le.PutUint64(ph[48:], page.Size)
	ph = ph[elfPhdrSize:]
	le.PutUint32(ph, 0x6474e551) // PT_GNU_STACK
	le.PutUint32(ph[4:], 6)      // RW
	le.PutUint64(ph[48:], 16)
}

// memfdExec is a memory file that may be executed.
func memfdExec(name string, flags int) (int, error) {
	const mfdExec = 0x10 // MFD_EXEC, Linux 6.3: asked for where the system's default forbids
	fd, err := unix.MemfdCreate(name, flags|mfdExec)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return -1, fmt.Errorf("make a memory file: %w", err)
	}
	return fd, nil
}

// hole finds the middle of the largest range of addresses that no mapping
// uses: as far as can be from all that grows.
func (st *State) hole() page.Addr {
	best := page.Range{Start: 1 << 20, End: 1 << 20}
	last := best.Start
	try := func(end page.Addr) {
		if r := (page.Range{Start: last, End: end}); r.Len() > best.Len() {
			best = r
		}
	}
	for i := range st.VMAs {
		try(st.VMAs[i].Start)
		last = max(last, st.VMAs[i].End)
	}
	try(taskSize)
	return (best.Start + page.Addr(best.Len()/2)).Down()
}
