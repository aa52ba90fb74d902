package uffd

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Which system calls tell the scheduler
//
// unix.Syscall lets the scheduler give the processor (the P) to other
// goroutines while the call lasts; unix.RawSyscall does not, so a call that
// waits holds up whoever wants to stop the world. What is raw here: Read on a
// non-blocking descriptor and Wake, which cannot wait, and CopyNow and ZeroNow,
// whose caller asks for it. All others take the mmap lock of the process and may
// allocate, reclaim, and be throttled by a memory limit, for as long as that
// takes. BenchmarkCopy has what it is about: raw, a copy of 4 KiB saves 0.3 of
// its 2.1 to 2.8 µs; from 64 KiB on (18 to 28 µs) the difference is noise. What
// a benchmark with processors to spare does not show: a thread of the scheduler
// that looks after calls wakes each 20 µs as long as it finds some that last, and
// where many processes share a processor most do.

// ioctl runs one request on f and reports its errno, zero for none. arg points
// to a struct of abi_linux.go; it does not escape.
func (f *FD) ioctl(request uintptr, arg unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.fd.Load()), request, uintptr(arg))
	return errno
}

// openDevice asks /dev/userfaultfd for a descriptor (USERFAULTFD_IOC_NEW).
func openDevice(flags OpenFlag) (int, error) {
	dev, err := unix.Open("/dev/userfaultfd", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(dev) }()
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev), ioctlNew, uintptr(flags))
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// openSyscall asks userfaultfd(2) for a descriptor.
func openSyscall(flags OpenFlag) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, uintptr(flags), 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// api is UFFDIO_API.
func (f *FD) api(want Features) (Info, unix.Errno) {
	arg := apiArg{api: apiVersion, features: want}
	if errno := f.ioctl(ioctlAPI, unsafe.Pointer(&arg)); errno != 0 {
		return Info{}, errno
	}
	return Info{Features: arg.features, Ioctls: arg.ioctls}, 0
}

// Register has faults of the kinds in mode, in length bytes at start, reported
// to f (UFFDIO_REGISTER). It returns what may be done with the range. Pages
// that are there stay as they are. Registering a registered range again
// changes its mode.
//
// EINVAL: not aligned to pages (huge pages in hugetlb memory), or nothing is
// mapped there, or memory of a kind that mode cannot have: private mappings
// of files, MAP_DROPPABLE, shared memory on an old kernel. EBUSY: another
// userfaultfd has part of the range. EPERM: a shared mapping of what was
// opened for reading only, or is sealed against writing. ENOMEM: no memory to
// split a mapping, nothing mapped at or above start, or the process is gone.
func (f *FD) Register(start, length uint64, mode Mode) (Ioctls, error) {
	arg := registerArg{start: start, length: length, mode: mode}
	if errno := f.ioctl(ioctlRegister, unsafe.Pointer(&arg)); errno != 0 {
		return 0, &Error{Op: "register", Start: start, Length: length, Errno: errno}
	}
	return arg.ioctls, nil
}

// Unregister makes the range ordinary memory again (UFFDIO_UNREGISTER) and
// wakes who waits in it: pages that are missing still become zeros. The range
// may hold ranges that are not registered.
//
// EINVAL: not aligned, nothing mapped there, memory of a kind that cannot be
// registered in the range, or, in newer kernels, part of it is registered with
// another userfaultfd. ENOMEM: no memory to split a mapping, or the process is
// gone.
func (f *FD) Unregister(start, length uint64) error {
	arg := rangeArg{start: start, length: length}
	if errno := f.ioctl(ioctlUnregister, unsafe.Pointer(&arg)); errno != 0 {
		return &Error{Op: "unregister", Start: start, Length: length, Errno: errno}
	}
	return nil
}

// Wake wakes the threads that wait for pages of the range (UFFDIO_WAKE). Each
// tries its access again, so one whose page is still missing raises a new
// event: this is how a successor has faults that its predecessor had read
// raised again.
//
// EINVAL: not aligned, or no such addresses.
func (f *FD) Wake(start, length uint64) error {
	arg := rangeArg{start: start, length: length}
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(f.fd.Load()), ioctlWake, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return &Error{Op: "wake", Start: start, Length: length, Errno: errno}
	}
	return nil
}

// Copy installs the bytes of src as pages from dst on (UFFDIO_COPY) and wakes
// who waits for them, unless mode says DontWake. Both dst and the length of
// src are multiples of the page size (of the huge page size in hugetlb
// memory); src need not be aligned. Protection does not matter: read-only and
// PROT_NONE mappings are filled too. It does not allocate unless it fails.
//
// n is how many bytes were installed, also when there is an error:
//
// EAGAIN with n > 0: it ended early; Copy the rest to be told why. EAGAIN with
// n == 0: the address space is changing, by an event that has not been read:
// read events, then try again. EEXIST: the first page is there already; nobody
// was woken. ENOENT: the range is not, or no longer, registered in one
// mapping. ESRCH: the process is gone. EINVAL: not aligned, or no such
// addresses. ENOMEM: no memory, or the limit of a cgroup. ENOSPC: not enough
// huge pages, or a full tmpfs. EFAULT: src cannot be read.
//
// src may be any Go memory: it escapes to the heap, where nothing moves (a
// goroutine's stack would), and is kept alive until the kernel is done. It may
// be memory of mmap(2) too. It must not be memory that itself waits for a
// userfaultfd served by this process.
func (f *FD) Copy(dst uint64, src []byte, mode CopyMode) (n int64, err error) {
	p := unsafe.Pointer(unsafe.SliceData(src))
	escape(p)
	arg := copyArg{dst: dst, src: uint64(uintptr(p)), length: uint64(len(src)), mode: uint64(mode)}
	errno := f.ioctl(ioctlCopy, unsafe.Pointer(&arg))
	runtime.KeepAlive(src)
	if errno != 0 {
		return outcome("copy", dst, uint64(len(src)), arg.done, errno)
	}
	return arg.done, nil
}

// CopyNow is Copy without telling the scheduler: for copies that take no longer
// than what else runs between two points at which a goroutine can be stopped.
// Until it is done this thread keeps its P and the world cannot be stopped.
func (f *FD) CopyNow(dst uint64, src []byte, mode CopyMode) (n int64, err error) {
	p := unsafe.Pointer(unsafe.SliceData(src))
	escape(p)
	arg := copyArg{dst: dst, src: uint64(uintptr(p)), length: uint64(len(src)), mode: uint64(mode)}
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(f.fd.Load()), ioctlCopy, uintptr(unsafe.Pointer(&arg)))
	runtime.KeepAlive(src)
	if errno != 0 {
		return outcome("copy", dst, uint64(len(src)), arg.done, errno)
	}
	return arg.done, nil
}

// Zero installs pages of zeros (UFFDIO_ZEROPAGE). In private memory they cost
// nothing before they are written to: they are the kernel's one page of zeros. In
// shared memory each is a page of its own. It wakes as Copy does, and n and the errors are Copy's. Besides, EINVAL: hugetlb memory,
// which has no such page.
func (f *FD) Zero(start, length uint64, mode CopyMode) (n int64, err error) {
	return f.fill("zero", ioctlZeropage, start, length, mode)
}

// ZeroNow is Zero without telling the scheduler; see CopyNow.
func (f *FD) ZeroNow(start, length uint64, mode CopyMode) (n int64, err error) {
	arg := fillArg{start: start, length: length, mode: uint64(mode)}
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(f.fd.Load()), ioctlZeropage, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return outcome("zero", start, length, arg.done, errno)
	}
	return arg.done, nil
}

// Continue maps pages that are in the page cache already into a range
// registered with ModeMinor (UFFDIO_CONTINUE). It wakes as Copy does, and n is
// Copy's.
//
// EFAULT: no such page in the page cache. EEXIST, ENOENT, ESRCH, EAGAIN,
// EINVAL, ENOMEM: as for Copy. EINVAL also: Linux before 5.13.
func (f *FD) Continue(start, length uint64, mode CopyMode) (n int64, err error) {
	return f.fill("continue", ioctlContinue, start, length, mode)
}

// Poison marks pages as lost (UFFDIO_POISON): whoever touches one is sent
// SIGBUS, and a system call gets EFAULT or EHWPOISON, as after a memory error.
// It wakes as Copy does, n and the errors are Copy's, and Linux before 6.6
// answers EINVAL.
func (f *FD) Poison(start, length uint64, mode CopyMode) (n int64, err error) {
	return f.fill("poison", ioctlPoison, start, length, mode)
}

// fill runs the requests that take a range and a mode and count bytes.
func (f *FD) fill(op string, request uintptr, start, length uint64, mode CopyMode) (int64, error) {
	arg := fillArg{start: start, length: length, mode: uint64(mode)}
	if errno := f.ioctl(request, unsafe.Pointer(&arg)); errno != 0 {
		return outcome(op, start, length, arg.done, errno)
	}
	return arg.done, nil
}

// Move moves pages of private anonymous memory from src to dst (UFFDIO_MOVE)
// without copying: afterwards the source has none. dst is missing memory
// registered with f. Both have to belong to the calling process. It wakes as
// Copy does, and n is Copy's.
//
// ENOENT: a page of the source is missing, and mode lacks
// MoveAllowSourceHoles, or dst is not registered. EEXIST: a page of dst is
// there. EBUSY: a page of the source is pinned, or shared after a fork. EINVAL:
// not aligned, not private anonymous memory, unlike protection or locking, or
// Linux before 6.8. ESRCH: the process is gone, or is not the caller. EAGAIN,
// ENOMEM: as for Copy.
func (f *FD) Move(dst, src, length uint64, mode MoveMode) (n int64, err error) {
	arg := copyArg{dst: dst, src: src, length: length, mode: uint64(mode)}
	if errno := f.ioctl(ioctlMove, unsafe.Pointer(&arg)); errno != 0 {
		return outcome("move", dst, length, arg.done, errno)
	}
	return arg.done, nil
}

// WriteProtect protects the range, which is registered with ModeWriteProtect,
// against writes, or lifts that protection (UFFDIO_WRITEPROTECT). Lifting it
// wakes who waits, unless mode says UnprotectDontWake. Pages that are missing
// are left as they are, unless FeatureWriteProtectUnpopulated is enabled.
//
// ENOENT: the range is not registered so. EAGAIN: the address space is
// changing: read events, then try again. EINVAL: not aligned, a mode that
// contradicts itself, or Linux before 5.7. ESRCH: the process is gone. ENOMEM:
// no memory for page tables.
func (f *FD) WriteProtect(start, length uint64, mode WriteProtectMode) error {
	arg := writeProtectArg{start: start, length: length, mode: mode}
	if errno := f.ioctl(ioctlWriteProtect, unsafe.Pointer(&arg)); errno != 0 {
		return &Error{Op: "write-protect", Start: start, Length: length, Errno: errno}
	}
	return nil
}

// Read takes messages into buf, at least one and at most len(buf) of them, and
// returns how many. The messages are written by the kernel, so buf may lie in
// memory shared with another process. A descriptor that blocks waits for the
// first; one that does not answers EAGAIN when there is none, bare, so that a
// caller that spins costs nothing. EINTR is dealt with. It does not allocate
// unless it fails.
//
// Faults come before other events. Reading an event other than a fault
// acknowledges it: the thread that caused it goes on.
//
// EINVAL: before Enable, or an empty buf. EMFILE, ENFILE: no room for the
// descriptor of an EventFork, which stays queued. EFAULT: buf cannot be
// written; the message is lost.
func (f *FD) Read(buf []Msg) (n int, err error) {
	p := unsafe.Pointer(unsafe.SliceData(buf))
	size := uintptr(len(buf)) * MsgSize
	fd := uintptr(f.fd.Load())
	for {
		var got uintptr
		var errno unix.Errno
		if f.noblock {
			got, _, errno = unix.RawSyscall(unix.SYS_READ, fd, uintptr(p), size)
		} else {
			got, _, errno = unix.Syscall(unix.SYS_READ, fd, uintptr(p), size)
		}
		switch errno {
		case 0:
			return int(got / MsgSize), nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, unix.EAGAIN
		default:
			return 0, &Error{Op: "read", Errno: errno}
		}
	}
}

// outcome decodes the last field of a request that did not go through: a
// count of bytes when it ended early, else a negated errno, which a kernel may
// also have left at zero.
func outcome(op string, start, length uint64, done int64, errno unix.Errno) (int64, error) {
	if done < 0 {
		errno, done = unix.Errno(-done), 0
	}
	return done, &Error{Op: op, Start: start, Length: length, Errno: errno}
}

// escape makes what p points to live on the heap, which the compiler cannot
// know to be needed: the kernel gets the address as an integer in a struct.
func escape(p unsafe.Pointer) {
	if escaped != nil {
		escaped = p
	}
}

var escaped unsafe.Pointer // always nil
