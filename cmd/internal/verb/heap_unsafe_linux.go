package verb

import (
	"runtime"
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

const (
	// heapSpan is how much the Go runtime takes of a fresh heap for small objects.
	heapSpan = 8 << 10
	// heapAhead is how much of the heap a restore takes until the process runs, if that
	// has some hundred mappings.
	heapAhead = 1 << 20
)

// FillHeap makes the pages of the heap that come next, on another processor, while this one
// goes on: each would else be an exception. It is for the beginning of a program, whose heap
// grows upwards.
func FillHeap() {
	if runtime.NumCPU() > 1 {
		at := uintptr(unsafe.Pointer(new([heapSpan]byte)))
		populateBeside(at&^(heapSpan-1)+heapSpan, heapAhead)
	}
}
