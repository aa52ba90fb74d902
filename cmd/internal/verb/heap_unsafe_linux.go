package verb

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// heapArena is what the Go runtime reserves at a time.
const heapArena = 64 << 20

// ShareNoHeap keeps the heap from children that get a copy of this process's
// memory: the keeper, which has no use for it. That spares the copying of its
// page tables and, after that, an exception for each page that is written to.
// It is advice: where the kernel does not take it the keeper starts slower.
func ShareNoHeap() {
	at := uintptr(unsafe.Pointer(new([64]byte)))
	_, _, _ = unix.RawSyscall(unix.SYS_MADVISE, at&^(heapArena-1), heapArena, unix.MADV_DONTFORK)
}
