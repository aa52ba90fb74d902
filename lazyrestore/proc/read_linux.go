package proc

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// ErrNoProcess says that there is no such process or thread, or that it ended
// while it was looked at.
var ErrNoProcess = errors.New("no such process")

// pathOf is the path of a file of a process (or thread) in /proc.
func pathOf(pid int, name string) string {
	return "/proc/" + strconv.Itoa(pid) + "/" + name
}

// ReadFile reads all of /proc/PID/name. It goes around os.File, which would
// start the poller. The error is ErrNoProcess where the process is gone.
func ReadFile(pid int, name string) ([]byte, error) {
	b, err := readPath(pathOf(pid, name), nil)
	if err != nil && goneError(err) && !exists(pid) {
		err = ErrNoProcess
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", pathOf(pid, name), err)
	}
	return b, nil
}

// goneError reports whether err is one that /proc gives for a process that
// has gone; ENOENT may also be a file that this kernel lacks.
func goneError(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH)
}

func exists(pid int) bool {
	var st unix.Stat_t
	return unix.Stat("/proc/"+strconv.Itoa(pid), &st) == nil
}

// readPath appends the content of a file to buf.
func readPath(path string, buf []byte) ([]byte, error) {
	fd, err := open(path, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if buf == nil {
		buf = make([]byte, 0, 4096)
	}
	for {
		if len(buf) == cap(buf) {
			buf = slices.Grow(buf, cap(buf))
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, err
		case n == 0:
			return buf, nil
		default:
			buf = buf[:len(buf)+n]
		}
	}
}

func open(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// read reads one file of a process and parses it.
func read[T any](pid int, name string, parse func([]byte) (T, error)) (T, error) {
	b, err := ReadFile(pid, name)
	if err != nil {
		var zero T
		return zero, err
	}
	v, err := parse(b)
	if err != nil {
		return v, fmt.Errorf("process %d: %w", pid, err)
	}
	return v, nil
}

// ReadSmaps reads the mappings of a process from /proc/PID/smaps. The kernel
// walks the page tables for it, so that it takes longer the more memory is
// resident; ReadMaps is enough for addresses and names.
func ReadSmaps(pid int) (Smaps, error) { return read(pid, "smaps", ParseSmaps) }

// ReadMaps reads the mappings of a process without flags and sizes.
func ReadMaps(pid int) ([]VMA, error) { return read(pid, "maps", ParseMaps) }

// ReadStatus reads /proc/PID/status of a process or thread.
func ReadStatus(tid int) (Status, error) { return read(tid, "status", ParseStatus) }

// ReadStat reads /proc/PID/stat of a process. Some of the addresses in it are
// zero for a caller that may not trace the process.
func ReadStat(pid int) (Stat, error) { return read(pid, "stat", ParseStat) }

// ReadAuxv reads the auxiliary vector that the kernel gave a process.
func ReadAuxv(pid int) (Auxv, error) { return read(pid, "auxv", ParseAuxv) }

// ReadTimers lists the POSIX timers of a process.
func ReadTimers(pid int) ([]Timer, error) { return read(pid, "timers", ParseTimers) }

// ReadPersonality reads the personality(2) of a process or thread.
func ReadPersonality(tid int) (uint32, error) { return read(tid, "personality", ParsePersonality) }

// ReadLimits reads the resource limits of a process.
func ReadLimits(pid int) (Limits, error) { return read(pid, "limits", ParseLimits) }

// ReadOOMScoreAdj reads how much more or less than others a process is to be
// killed when memory runs out, -1000 to 1000.
func ReadOOMScoreAdj(pid int) (int64, error) { return read(pid, "oom_score_adj", parseSigned) }

// ReadCoreFilter reads which mappings of a process a core dump holds, see core(5).
func ReadCoreFilter(pid int) (uint64, error) { return read(pid, "coredump_filter", parseHex) }

// ReadTimerSlack reads the timer slack of a thread, in nanoseconds.
func ReadTimerSlack(tid int) (uint64, error) { return read(tid, "timerslack_ns", parseUnsigned) }

// WriteTimerSlack gives a thread a timer slack. Unless it is the calling one that
// takes CAP_SYS_NICE.
func WriteTimerSlack(tid int, ns uint64) error {
	fd, err := open(pathOf(tid, "timerslack_ns"), unix.O_WRONLY)
	if err == nil {
		_, err = unix.Write(fd, strconv.AppendUint(nil, ns, 10))
		unix.Close(fd)
	}
	if err != nil && goneError(err) && !exists(tid) {
		err = ErrNoProcess
	}
	if err != nil {
		return fmt.Errorf("set the timer slack of thread %d: %w", tid, err)
	}
	return nil
}

// ReadCgroups reads the control groups that a process is in.
func ReadCgroups(pid int) ([]Cgroup, error) { return read(pid, "cgroup", ParseCgroups) }

// ReadFDInfo reads what the kernel says about one descriptor of a process.
func ReadFDInfo(pid, fd int) (FDInfo, error) {
	return read(pid, "fdinfo/"+strconv.Itoa(fd), ParseFDInfo)
}

// ReadMeminfo reads the memory of the machine.
func ReadMeminfo() (Meminfo, error) {
	b, err := readPath("/proc/meminfo", nil)
	if err != nil {
		return Meminfo{}, fmt.Errorf("read /proc/meminfo: %w", err)
	}
	return ParseMeminfo(b)
}

// FDLink is an open descriptor of a process, and what /proc says it refers to:
// a path, or a word such as "pipe:[1234]".
type FDLink struct {
	FD     int
	Target string
}

// ReadFDs lists the open descriptors of a process in ascending order. One that
// is closed while the list is made is left out.
func ReadFDs(pid int) ([]FDLink, error) {
	nums, err := readNumbers(pathOf(pid, "fd"))
	if err != nil {
		return nil, err
	}
	links := make([]FDLink, 0, len(nums))
	for _, fd := range nums {
		target, err := ReadLink(pid, "fd/"+strconv.Itoa(fd))
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		links = append(links, FDLink{fd, target})
	}
	return links, nil
}

// EachFD calls f for each open descriptor of a process with what /proc says
// it refers to, which is good until f returns; in no order. One that is closed
// meanwhile is left out. An error of f ends the list and is returned.
func EachFD(pid int, f func(fd int, link []byte) error) error {
	dir, err := open(pathOf(pid, "fd"), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		if goneError(err) {
			err = ErrNoProcess
		}
		return fmt.Errorf("open %s: %w", pathOf(pid, "fd"), err)
	}
	defer unix.Close(dir)
	nums, err := listNumbers(dir, pathOf(pid, "fd"))
	if err != nil {
		return err
	}
	buf := make([]byte, 4096+16)
	for _, fd := range nums {
		n, err := unix.Readlinkat(dir, strconv.Itoa(fd), buf)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("readlink %s/%d: %w", pathOf(pid, "fd"), fd, err)
		}
		if err := f(fd, buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

// ReadProcesses lists all processes that are to be seen, in ascending order.
func ReadProcesses() ([]int, error) { return readNumbers("/proc") }

// A ProcessEntry is a process in the listing of /proc.
type ProcessEntry struct {
	PID   int
	Inode uint64 // of its directory: another process that gets the id later has another one
}

// ReadProcessEntries lists all processes that are to be seen, in no order.
func ReadProcessEntries() (list []ProcessEntry, err error) {
	fd, err := open("/proc", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("open /proc: %w", err)
	}
	defer unix.Close(fd)
	err = eachDirent(fd, "/proc", func(name string, inode uint64) {
		if v, err := strconv.Atoi(name); err == nil {
			list = append(list, ProcessEntry{v, inode})
		}
	})
	return list, err
}

// ReadTasks lists the threads of a process in ascending order.
func ReadTasks(pid int) ([]int, error) { return readNumbers(pathOf(pid, "task")) }

// ReadMounts reads what is mounted where for a process.
func ReadMounts(pid int) ([]Mount, error) {
	b, err := ReadFile(pid, "mountinfo")
	if err != nil {
		return nil, err
	}
	return ParseMounts(b)
}

// ReadLink reads a link in /proc/PID, such as "exe", "cwd" or "fd/3".
func ReadLink(pid int, name string) (string, error) {
	path := pathOf(pid, name)
	buf := make([]byte, 4096+16) // PATH_MAX and " (deleted)"
	n, err := unix.Readlink(path, buf)
	if err != nil {
		return "", fmt.Errorf("readlink %s: %w", path, err)
	}
	return string(buf[:n]), nil
}

// readNumbers lists the entries of a directory of /proc that are numbers.
func readNumbers(path string) ([]int, error) {
	fd, err := open(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		if goneError(err) {
			err = ErrNoProcess
		}
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	return listNumbers(fd, path)
}

// listNumbers is readNumbers of an open directory.
func listNumbers(fd int, path string) ([]int, error) {
	var nums []int
	err := eachDirent(fd, path, func(name string, _ uint64) {
		if v, err := strconv.Atoi(name); err == nil {
			nums = append(nums, v)
		}
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(nums, cmp.Compare[int])
	return nums, nil
}

// eachDirent calls f with the names and inodes of an open directory of /proc.
func eachDirent(fd int, path string, f func(name string, inode uint64)) error {
	buf := make([]byte, 8192)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
			err = ErrNoProcess
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", path, err)
		}
		if n == 0 {
			return nil
		}
		for rest := buf[:n]; len(rest) > 0; { // struct linux_dirent64: inode, offset, u16 length, type, name
			length := binary.NativeEndian.Uint16(rest[16:])
			name, _, _ := bytes.Cut(rest[19:length], []byte{0})
			f(string(name), binary.NativeEndian.Uint64(rest))
			rest = rest[length:]
		}
	}
}
