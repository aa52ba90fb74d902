package client

import (
	"bytes"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Memory for what comes has its pages before it comes.
func TestFreshIsThere(t *testing.T) {
	for range 8 { // some of it the heap has had before
		p := fresh(largeBlock)
		there := make([]byte, largeBlock/os.Getpagesize())
		if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), uintptr(unsafe.Pointer(&there[0]))); errno != 0 {
			t.Fatal(errno)
		}
		if n := bytes.Count(there, []byte{1}); n != len(there) {
			t.Errorf("%d pages of %d", n, len(there))
		}
	}
}
