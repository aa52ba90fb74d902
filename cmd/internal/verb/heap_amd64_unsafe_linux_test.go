//go:build amd64

package verb

import (
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The pages are made by another thread, which has ended then; the caller's signals are
// what they were, and what lies in the pages stays.
func TestPopulateBeside(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const pages = 64
	b, err := unix.Mmap(-1, 0, pages*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(b) }()
	b[5] = 7
	var before, after unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, nil, &before); err != nil {
		t.Fatal(err)
	}
	populateBeside(uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, nil, &after); err != nil || before != after {
		t.Errorf("signals blocked: %v, before %v (%v)", after, before, err)
	}
	there := func() (n int) {
		vec := make([]byte, pages)
		if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&vec[0]))); errno != 0 {
			t.Fatal(errno)
		}
		for _, v := range vec {
			n += int(v & 1)
		}
		return n
	}
	for end := time.Now().Add(10 * time.Second); there() < pages; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of %d pages are there", there(), pages)
		}
	}
	if b[5] != 7 || b[6] != 0 {
		t.Errorf("they hold %v", b[:8])
	}
}
