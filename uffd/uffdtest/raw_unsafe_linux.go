package uffdtest

import (
	"fmt"
	"math/bits"
	"os"
	"structs"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a thread of the child can be asked for.
const (
	opLoad    = 1 + iota // the byte at args[0]
	opStore              // the byte args[1] to args[0]
	opSum                // Sum of args[1] bytes at args[0]
	opSyscall            // the system call args[0] with args[1:]
	opFork               // fork; the child obeys the socket args[0]
	opExit               // end the process with status args[0]
)

// request is one message to a thread, answer the one that comes back.
type request struct {
	_    structs.HostLayout
	op   uint64
	args [7]uint64
}

type answer struct {
	_     structs.HostLayout
	value uint64
	errno uint64
}

const (
	requestSize = 8 * 8
	answerSize  = 2 * 8
)

// obey does what comes over a socket until the other end closes, and then ends
// the process. It never returns to Go's scheduler, neither grows its stack nor
// allocates, and blocks all signals: so it can wait in a page fault without
// the runtime's preemption making faults of its own, and it goes on in a
// forked process, where no other thread exists.
//
//go:nosplit
//go:norace
//go:nocheckptr
func obey(sock uintptr) {
	all := ^uint64(0)
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), 0, 8, 0, 0)
	var req request
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, sock, uintptr(unsafe.Pointer(&req)), requestSize)
		if errno != 0 || n != requestSize {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
		var ans answer
		a := &req.args
		switch req.op {
		case opLoad:
			ans.value = uint64(*(*byte)(at(a[0])))
		case opStore:
			*(*byte)(at(a[0])) = byte(a[1])
		case opSum:
			ans.value = sumAt(a[0], a[1])
		case opSyscall:
			r, _, errno := unix.RawSyscall6(uintptr(a[0]), uintptr(a[1]), uintptr(a[2]), uintptr(a[3]),
				uintptr(a[4]), uintptr(a[5]), uintptr(a[6]))
			ans.value, ans.errno = uint64(r), uint64(errno)
		case opFork:
			pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
			if pid == 0 && errno == 0 {
				unix.RawSyscall(unix.SYS_CLOSE, sock, 0, 0)
				sock = uintptr(a[0])
				continue
			}
			unix.RawSyscall(unix.SYS_CLOSE, uintptr(a[0]), 0, 0)
			ans.value, ans.errno = uint64(pid), uint64(errno)
		case opExit:
			unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(a[0]), 0, 0)
		}
		_, _, errno = unix.RawSyscall(unix.SYS_WRITE, sock, uintptr(unsafe.Pointer(&ans)), answerSize)
		if errno != 0 {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
}

// at is a pointer to memory that Go's allocator knows nothing of.
//
//go:nosplit
func at(addr uint64) unsafe.Pointer {
	u := uintptr(addr)
	return *(*unsafe.Pointer)(unsafe.Pointer(&u))
}

// The sum starts as 64-bit FNV does, and mixes words.
const (
	sumStart = 0xCBF29CE484222325
	sumPrime = 0x100000001B3
)

//go:nosplit
//go:norace
//go:nocheckptr
func sumAt(addr, length uint64) uint64 {
	h := uint64(sumStart)
	for i := uint64(0); i+8 <= length; i += 8 {
		h = bits.RotateLeft64((h^*(*uint64)(at(addr + i)))*sumPrime, 23)
	}
	return h
}

// Sum is what Thread.Sum answers for memory that holds p, whose length is a
// multiple of 8.
func Sum(p []byte) uint64 {
	if len(p)%8 != 0 {
		panic("uffdtest.Sum: length is not a multiple of 8")
	}
	return sumAt(uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))), uint64(len(p)))
}

// bytes is the memory of r as it goes over the socket.
func (r *request) bytes() []byte { return unsafe.Slice((*byte)(unsafe.Pointer(r)), requestSize) }

// bytes is the memory of a as it goes over the socket.
func (a *answer) bytes() []byte { return unsafe.Slice((*byte)(unsafe.Pointer(a)), answerSize) }

// mapMemory maps length bytes where the kernel likes.
func mapMemory(length uint64, flags int, fd int) (uint64, error) {
	p, err := unix.MmapPtr(fd, 0, nil, uintptr(length), unix.PROT_READ|unix.PROT_WRITE, flags)
	return uint64(uintptr(p)), err
}

// pmScanArg is struct pm_scan_arg of <linux/fs.h>.
type pmScanArg struct {
	_                structs.HostLayout
	size, flags      uint64
	start, end       uint64
	walkEnd          uint64
	vec, vecLen      uint64
	maxPages         uint64
	inverted         uint64
	mask, anyOf, ret uint64
}

// pagemapScan is PAGEMAP_SCAN: _IOWR('f', 16, struct pm_scan_arg).
const pagemapScan = 0xC0606610

func probePagemapScan() error {
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return err
	}
	defer func() { _ = pagemap.Close() }()
	arg := pmScanArg{size: uint64(unsafe.Sizeof(pmScanArg{}))}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, pagemap.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return fmt.Errorf("PAGEMAP_SCAN on /proc/self/pagemap: %w", errno)
	}
	return nil
}
