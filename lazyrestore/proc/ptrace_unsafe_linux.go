package proc

import (
	"structs"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests that golang.org/x/sys does not have; see <linux/ptrace.h>.
const (
	ptraceGetSyscallUserDispatch = 0x4211 // PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, Linux 6.4
	ntX86XState                  = 0x202  // NT_X86_XSTATE
)

// ptrace makes a request whose arguments are numbers. ESRCH: the task is gone,
// not traced by this thread, or not stopped.
func ptrace(request, tid int, addr, data uintptr) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// seize is PTRACE_SEIZE. It may wait, for an execve of the task to end, and lets others
// run Go meanwhile.
func seize(tid int, options uintptr) error {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(tid), 0, options, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// ptraceData makes a request whose data is a pointer; it gives the request's
// result.
func ptraceData(request, tid int, addr uintptr, data unsafe.Pointer) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, uintptr(data), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// wait4 is wait4(2) that Go's scheduler knows nothing of: the thread keeps its
// right to run Go, which others would else take and not give back at once. It
// is for waits that end soon.
func wait4(tid int, st *unix.WaitStatus, flags int) (int, error) {
	var status int32
	n, _, errno := unix.RawSyscall6(unix.SYS_WAIT4, uintptr(tid), uintptr(unsafe.Pointer(&status)), uintptr(flags), 0, 0, 0)
	*st = unix.WaitStatus(status)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// nextChild waits until a child of the calling thread, or a task that it traces, has
// something to tell, which is left for a wait for it, and gives its id; 0: it does not know.
// If that is soon Go's scheduler knows nothing of it, as of wait4.
func nextChild(soon bool) int {
	var info struct { // a siginfo_t of SIGCHLD, and room for the others
		signo, errno, code, _ int32
		pid                   int32
		_                     [27]int32
	}
	const options = unix.WEXITED | unix.WSTOPPED | unix.WNOWAIT | unix.WALL | unix.WNOTHREAD
	var errno unix.Errno
	if soon {
		_, _, errno = unix.RawSyscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)), options, 0, 0)
	} else {
		_, _, errno = unix.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)), options, 0, 0)
	}
	if errno != 0 {
		return 0
	}
	return int(info.pid)
}

func getRegs(tid int, r *Regs) error {
	_, err := ptraceData(unix.PTRACE_GETREGS, tid, 0, unsafe.Pointer(r))
	return err
}

func setRegs(tid int, r *Regs) error {
	_, err := ptraceData(unix.PTRACE_SETREGS, tid, 0, unsafe.Pointer(r))
	return err
}

// getRegSet fills buf with a register set and gives its size.
func getRegSet(tid int, set uintptr, buf []byte) (int, error) {
	v := unix.Iovec{Base: &buf[0], Len: uint64(len(buf))}
	if _, err := ptraceData(unix.PTRACE_GETREGSET, tid, set, unsafe.Pointer(&v)); err != nil {
		return 0, err
	}
	return int(v.Len), nil
}

func setRegSet(tid int, set uintptr, buf []byte) error {
	v := unix.Iovec{Base: &buf[0], Len: uint64(len(buf))}
	_, err := ptraceData(unix.PTRACE_SETREGSET, tid, set, unsafe.Pointer(&v))
	return err
}

func getSigMask(tid int) (mask uint64, err error) {
	_, err = ptraceData(unix.PTRACE_GETSIGMASK, tid, 8, unsafe.Pointer(&mask))
	return mask, err
}

func setSigMask(tid int, mask uint64) error {
	_, err := ptraceData(unix.PTRACE_SETSIGMASK, tid, 8, unsafe.Pointer(&mask))
	return err
}

// SiginfoSize is the size of a siginfo_t.
const SiginfoSize = 128

func getSiginfo(tid int, info *[SiginfoSize]byte) error {
	_, err := ptraceData(unix.PTRACE_GETSIGINFO, tid, 0, unsafe.Pointer(info))
	return err
}

func setSiginfo(tid int, info *[SiginfoSize]byte) error {
	_, err := ptraceData(unix.PTRACE_SETSIGINFO, tid, 0, unsafe.Pointer(info))
	return err
}

// peekSiginfo fills buf, a multiple of SiginfoSize, with queued signals from
// the off-th on, and gives how many there were.
func peekSiginfo(tid int, off int, shared bool, buf []byte) (int, error) {
	arg := struct { // struct ptrace_peeksiginfo_args
		_          structs.HostLayout
		off        uint64
		flags, num uint32
	}{off: uint64(off), num: uint32(len(buf) / SiginfoSize)}
	if shared {
		arg.flags = unix.PTRACE_PEEKSIGINFO_SHARED
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_PEEKSIGINFO, uintptr(tid),
		uintptr(unsafe.Pointer(&arg)), uintptr(unsafe.Pointer(&buf[0])), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// rseqConfiguration is struct ptrace_rseq_configuration.
type rseqConfiguration struct {
	_         structs.HostLayout
	pointer   uint64
	size      uint32
	signature uint32
	flags     uint32
	_         uint32
}

func getRSeq(tid int) (c rseqConfiguration, err error) {
	_, err = ptraceData(unix.PTRACE_GET_RSEQ_CONFIGURATION, tid, unsafe.Sizeof(c), unsafe.Pointer(&c))
	return c, err
}

// syscallInfo is the head of struct ptrace_syscall_info.
type syscallInfo struct {
	_    structs.HostLayout
	op   uint8
	_    [3]uint8
	arch uint32
	ip   uint64
	sp   uint64
}

func getSyscallInfo(tid int) (s syscallInfo, err error) {
	_, err = ptraceData(unix.PTRACE_GET_SYSCALL_INFO, tid, unsafe.Sizeof(s), unsafe.Pointer(&s))
	return s, err
}

// dispatchConfig is struct ptrace_sud_config.
type dispatchConfig struct {
	_                             structs.HostLayout
	mode, selector, offset, bytes uint64
}

func getDispatch(tid int) (c dispatchConfig, err error) {
	_, err = ptraceData(ptraceGetSyscallUserDispatch, tid, unsafe.Sizeof(c), unsafe.Pointer(&c))
	return c, err
}

func getRobustList(tid int) (head, length uint64, err error) {
	_, _, errno := unix.RawSyscall(unix.SYS_GET_ROBUST_LIST, uintptr(tid),
		uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&length)))
	if errno != 0 {
		return 0, 0, errno
	}
	return head, length, nil
}
