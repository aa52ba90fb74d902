package uffd_test

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// anonymous maps length bytes for the time of the test, and says where.
func anonymous(t testing.TB, length uint64) (mem []byte, at uint64) {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	return mem, address(mem)
}

// address is where p lies, for memory that does not move.
func address(p []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))) }
