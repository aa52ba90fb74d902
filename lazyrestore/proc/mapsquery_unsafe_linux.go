package proc

import (
	"structs"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// procmapQueryRequest is PROCMAP_QUERY of <linux/fs.h>: _IOWR('f', 17, struct procmap_query).
const procmapQueryRequest = 3<<30 | procmapQuerySize<<16 | 0x66<<8 | 17 // 0x66: f

const procmapQuerySize = 104

// procmapQuery is struct procmap_query.
type procmapQuery struct {
	_                  structs.HostLayout
	size, flags, addr  uint64
	start, end         uint64
	vmaFlags, pageSize uint64
	offset, inode      uint64
	major, minor       uint32
	nameSize, idSize   uint32
	name, id           uint64
}

// Flags of what is asked, and of what is answered.
const (
	queryShared         = 8
	queryCoveringOrNext = 0x10
)

// queryMap asks of an open maps file for the first mapping that ends after a. Errors: ENOENT where there is none, ENOTTY before
// Linux 6.11, ESRCH where the process has no memory any more.
func queryMap(fd int, a page.Addr) (VMA, error) {
	q := procmapQuery{size: uint64(unsafe.Sizeof(procmapQuery{})), flags: queryCoveringOrNext, addr: uint64(a)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(procmapQueryRequest), uintptr(unsafe.Pointer(&q)))
	if errno != 0 {
		return VMA{}, errno
	}
	return VMA{
		Range: page.Range{Start: page.Addr(q.start), End: page.Addr(q.end)},
		Prot:  Prot(q.vmaFlags) & (ProtRead | ProtWrite | ProtExec), Shared: q.vmaFlags&queryShared != 0,
		PageSize: q.pageSize, Offset: q.offset, Inode: q.inode, DevMajor: q.major, DevMinor: q.minor,
	}, nil
}
