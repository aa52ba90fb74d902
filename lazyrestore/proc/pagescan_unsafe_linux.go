package proc

import (
	"runtime"
	"structs"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// pagemapScanRequest is PAGEMAP_SCAN of <linux/fs.h>: _IOWR('f', 16, struct
// pm_scan_arg).
const pagemapScanRequest = 3<<30 | PageScanSize<<16 | 0x66<<8 | 16 // 0x66: f

// pmScanArg is struct pm_scan_arg.
type pmScanArg struct {
	_                 structs.HostLayout
	size              uint64
	flags             uint64
	start             uint64
	end               uint64
	walkEnd           uint64
	vec               uint64
	vecLen            uint64
	maxPages          uint64
	categoryInverted  uint64
	categoryMask      uint64
	categoryAnyofMask uint64
	returnMask        uint64
}

// pageRegion is struct page_region.
type pageRegion struct {
	_                      structs.HostLayout
	start, end, categories uint64
}

// pagemapScan lists runs of pages in r that have one of the categories; next
// is where the kernel stopped, at the end or because the buffer was full. The
// runs are valid until the next call. Errors: ENOTTY and EINVAL where the
// kernel does not know the call or a category.
func (s *PageScanner) pagemapScan(r page.Range, anyOf Categories) (regions []pageRegion, next uint64, err error) {
	if s.regions == nil {
		s.regions = make([]pageRegion, scanRegions)
	}
	arg := pmScanArg{
		size: uint64(unsafe.Sizeof(pmScanArg{})), start: uint64(r.Start), end: uint64(r.End),
		vec: uint64(uintptr(unsafe.Pointer(&s.regions[0]))), vecLen: uint64(len(s.regions)),
		categoryAnyofMask: uint64(anyOf), returnMask: uint64(s.known),
	}
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s.fd), uintptr(pagemapScanRequest), uintptr(unsafe.Pointer(&arg)))
	runtime.KeepAlive(s)
	if errno != 0 {
		return nil, 0, errno
	}
	return s.regions[:n], arg.walkEnd, nil
}
