package main

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tryClone3 asks for a clone without arguments: EINVAL where there is clone3,
// ENOSYS where there is none or a filter hides it.
func tryClone3() error {
	_, _, errno := unix.RawSyscall(unix.SYS_CLONE3, 0, 0, 0)
	return orNil(errno)
}

// tryReadMemory reads a word of ourselves the way another process's is read.
func tryReadMemory(pid int) error {
	var from, to [8]byte
	local := []unix.Iovec{{Base: &to[0], Len: 8}}
	remote := []unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(&from)), Len: 8}}
	_, err := unix.ProcessVMReadv(pid, local, remote, 0)
	return err
}

// trySetMM asks for the size of struct prctl_mm_map, which changes nothing.
// EINVAL: the kernel is without CONFIG_CHECKPOINT_RESTORE.
func trySetMM() error {
	var size uint32
	_, _, errno := unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_MM, unix.PR_SET_MM_MAP_SIZE, uintptr(unsafe.Pointer(&size)), 0, 0, 0)
	return orNil(errno)
}

// archMapVDSO64 is ARCH_MAP_VDSO_64 of asm/prctl.h.
const archMapVDSO64 = 0x2003

// tryMapVDSO asks for a second vDSO: EEXIST where the call is known.
func tryMapVDSO() error {
	_, _, errno := unix.RawSyscall(unix.SYS_ARCH_PRCTL, archMapVDSO64, 0, 0)
	return orNil(errno)
}

// pmScanArg is struct pm_scan_arg of linux/fs.h.
type pmScanArg struct {
	size, flags             uint64
	start, end, walkEnd     uint64
	vec, vecLen, maxPages   uint64
	inverted, mask, anyMask uint64
	returned                uint64
}

// pagemapScan is PAGEMAP_SCAN: _IOWR('f', 16, struct pm_scan_arg).
const pagemapScan = 0xc0606610

// tryPagemapScan scans an empty range. ENOTTY: Linux before 6.7.
func tryPagemapScan() error {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return err
	}
	defer f.Close()
	arg := pmScanArg{returned: 1}
	arg.size = uint64(unsafe.Sizeof(arg))
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg)))
	return orNil(errno)
}

// tryCollapse advises an empty range. EINVAL: the advice is not known.
func tryCollapse(pidfd int) error {
	var none unix.Iovec
	_, _, errno := unix.Syscall6(unix.SYS_PROCESS_MADVISE, uintptr(pidfd), uintptr(unsafe.Pointer(&none)), 0, unix.MADV_COLLAPSE, 0, 0)
	return orNil(errno)
}

// tryRseqConfiguration asks a stopped tracee for struct
// ptrace_rseq_configuration: two words. EIO: Linux before 5.13.
func tryRseqConfiguration(pid int) error {
	var conf [3]uint64
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_RSEQ_CONFIGURATION, uintptr(pid), unsafe.Sizeof(conf), uintptr(unsafe.Pointer(&conf)), 0, 0)
	return orNil(errno)
}

func orNil(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}
