package proc

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// scan puts the first runs of pages in r that have one of the categories into buf. next is where the kernel
// stopped, at the end or because the buffer was full. Errors: those of pagemapScan.
func (g *GuardScanner) scan(r page.Range, anyOf Categories, buf *GuardBuffer) (n int, next page.Addr, errno unix.Errno) {
	if escaped != nil { // never: but so buf lies on the heap, where nothing moves while the kernel writes to it
		escaped = buf
	}
	arg := pmScanArg{
		size: uint64(unsafe.Sizeof(pmScanArg{})), start: uint64(r.Start), end: uint64(r.End),
		vec: uint64(uintptr(unsafe.Pointer(&buf.regions[0]))), vecLen: uint64(len(buf.regions)),
		categoryAnyofMask: uint64(anyOf), returnMask: uint64(anyOf | PagePresent),
	}
	got, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(g.fd), uintptr(pagemapScanRequest), uintptr(unsafe.Pointer(&arg)))
	runtime.KeepAlive(buf)
	return int(got), page.Addr(arg.walkEnd), errno
}

var escaped *GuardBuffer // always nil
