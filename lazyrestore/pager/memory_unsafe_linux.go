package pager

import (
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// word is the 8 bytes of b at off, which must be aligned, for atomic access.
func word(b []byte, off int) *uint64 {
	return (*uint64)(unsafe.Pointer(&b[off : off+8][0]))
}

// messages is b, whose length is a multiple of a message's, as the kernel's
// event messages.
func messages(b []byte) []uffd.Msg {
	return unsafe.Slice((*uffd.Msg)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/slotBytes)
}

// slotOf is the bytes of one message.
func slotOf(m *uffd.Msg) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(m)), slotBytes)
}

// pollNow reports whether any of fds is ready now (ppoll(2) with no time to
// wait, and so without a word to the scheduler).
func pollNow(fds []unix.PollFd) bool { return pollFor(fds, 0) }

// pollFor is pollNow with d to wait, which is to be short: meanwhile Go runs nothing in the
// caller's place.
func pollFor(fds []unix.PollFd, d time.Duration) bool {
	t := unix.NsecToTimespec(int64(d))
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)), uintptr(unsafe.Pointer(&t)), 0, 0, 0)
	return errno == 0 && n > 0
}

// processMadvise gives advice about a range of another process
// (process_madvise(2)).
//
// ENOMEM, EINVAL, EAGAIN, EBUSY: not for this range, or not now. ESRCH: the
// process is gone. EPERM: not our process to advise. ENOSYS: Linux before 5.10.
func processMadvise(pidfd int, r page.Range, advice int) error {
	iov := [2]uintptr{uintptr(r.Start), uintptr(r.Len())}
	_, _, errno := unix.Syscall6(unix.SYS_PROCESS_MADVISE, uintptr(pidfd), uintptr(unsafe.Pointer(&iov)), 1, uintptr(advice), 0, 0)
	if errno != 0 {
		return os.NewSyscallError("process_madvise", errno)
	}
	return nil
}

// addressOf is where b is. It means something only for memory of mmap(2).
func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
