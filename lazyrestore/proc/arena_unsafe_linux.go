package proc

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An Arena is a piece of memory in which arguments of system calls are laid
// out: what is put into it keeps its address. It is either our own memory,
// mapped apart from Go's heap (NewArena), or the picture of memory in another
// process that is written there later (ArenaAt). It never grows.
type Arena struct {
	base   uint64
	mem    []byte
	used   int
	mapped bool
}

// NewArena maps size bytes of our own memory. Close gives it back.
func NewArena(size int) (*Arena, error) {
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes for arguments: %w", size, err)
	}
	return &Arena{base: uint64(uintptr(unsafe.Pointer(&mem[0]))), mem: mem, mapped: true}, nil
}

// ArenaAt is a picture of size bytes at address base of another process.
func ArenaAt(base uint64, size int) *Arena {
	return &Arena{base: base, mem: make([]byte, size)}
}

// ArenaOver lays arguments out in mem, which another process sees, or will
// see, at address base. Close leaves mem alone.
func ArenaOver(base uint64, mem []byte) *Arena { return &Arena{base: base, mem: mem} }

// Close unmaps an arena of our own memory. No address in it may be used after.
func (a *Arena) Close() error {
	mem := a.mem
	a.mem, a.used = nil, 0
	if !a.mapped || mem == nil {
		return nil
	}
	return unix.Munmap(mem)
}

// Base is the address of the arena's first byte.
func (a *Arena) Base() uint64 { return a.base }

// Bytes is all that has been put into the arena, for writing it elsewhere.
func (a *Arena) Bytes() []byte { return a.mem[:a.used] }

// Alloc sets n zero bytes aside, aligned to align (a power of two), and gives
// their address and a view of them.
func (a *Arena) Alloc(n, align int) (uint64, []byte, error) {
	at := (a.used + align - 1) &^ (align - 1)
	if n < 0 || at > len(a.mem) || n > len(a.mem)-at {
		return 0, nil, fmt.Errorf("arguments of system calls: %d more bytes do not fit into %d", n, len(a.mem))
	}
	a.used = at + n
	return a.base + uint64(at), a.mem[at:a.used:a.used], nil
}

// Put copies b into the arena, aligned to 8 bytes.
func (a *Arena) Put(b []byte) (uint64, error) {
	addr, mem, err := a.Alloc(len(b), 8)
	copy(mem, b)
	return addr, err
}

// String puts s and a zero byte into the arena.
func (a *Arena) String(s string) (uint64, error) {
	addr, mem, err := a.Alloc(len(s)+1, 1)
	copy(mem, s)
	return addr, err
}

// Strings puts an array of strings into the arena as execve(2) wants it: with
// a null pointer at its end.
func (a *Arena) Strings(list []string) (uint64, error) {
	addr, array, err := a.Alloc(8*(len(list)+1), 8)
	if err != nil {
		return 0, err
	}
	for i, s := range list {
		p, err := a.String(s)
		if err != nil {
			return 0, err
		}
		binary.LittleEndian.PutUint64(array[8*i:], p)
	}
	return addr, nil
}

// Table puts an encoded table of calls into the arena; the view of it holds
// the results once it has been run.
func (a *Arena) Table(calls []Call) (uint64, []byte, error) {
	addr, mem, err := a.Alloc(TableSize(len(calls)), 16)
	if err != nil {
		return 0, nil, err
	}
	AppendTable(mem[:0], calls)
	return addr, mem, nil
}
