package client

import (
	"bytes"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// Memory for what comes has its pages before it comes.
func TestFreshIsThere(t *testing.T) {
	uffdtest.NeedFunc(t, "populate_write", func() error { // Linux 5.14
		p := make([]byte, 2*os.Getpagesize())
		at := uintptr(unsafe.Pointer(&p[0])) &^ uintptr(os.Getpagesize()-1)
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, at, uintptr(os.Getpagesize()), unix.MADV_POPULATE_WRITE); errno != 0 {
			return errno
		}
		return nil
	})
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
