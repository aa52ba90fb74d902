package proc

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// Places in the page of a TableELF. Behind its headers lies the code.
const (
	elfHeaderSize = 64
	elfPhdrSize   = 56
	elfCode       = elfHeaderSize + 2*elfPhdrSize
	elfData       = 512
	elfTable      = 1024

	elfMachine = 62 // EM_X86_64
)

// TableELF is a static executable of one page, loaded at address at, with no
// code but the loop that runs a table of system calls. calls gives the table,
// and places in the arena, which is in the page, what it points to.
func TableELF(at uint64, ending Ending, calls func(*Arena) ([]Call, error)) ([]byte, error) {
	img := make([]byte, page.Size)
	putELF(img, at, at+elfCode)
	code := append(entryCode(at+elfTable), LoopCode(ending)...)
	if elfCode+len(code) > elfData {
		return nil, errors.New("the loop has outgrown its page")
	}
	copy(img[elfCode:], code)
	table, err := calls(ArenaOver(at+elfData, img[elfData:elfTable]))
	if err != nil {
		return nil, err
	}
	if elfTable+TableSize(len(table)) > len(img) {
		return nil, fmt.Errorf("a table of %d calls is too long for its page", len(table))
	}
	AppendTable(img[elfTable:elfTable], table)
	return img, nil
}

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

// entryCode gives the loop behind it the table at addr.
func entryCode(addr uint64) []byte {
	return binary.LittleEndian.AppendUint64([]byte{0x49, 0xbc}, addr) // MOVABS $addr, R12
}

// MemFDExec is a memory file that may be executed.
func MemFDExec(name string, flags int) (int, error) {
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
