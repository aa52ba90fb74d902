package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// waitVerb makes this command wait until its standard input ends: the child
// that ptrace is tried on.
const waitVerb = "__wait"

// probeFacilities tries everything once.
func probeFacilities() []facility {
	list := []facility{probeKernel()}
	list = append(list, probeUffd()...)
	list = append(list, probeCalls()...)
	list = append(list, probePtrace()...)
	list = append(list, probeNamespaces()...)
	scope, err := readWord(ptraceScope)
	if err != nil {
		scope = "0" // Yama is not there
	}
	return append(list, probeCapabilities(readFile("/proc/self/status"), scope)...)
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// kernelAtLeast compares the numbers that a release begins with.
func kernelAtLeast(release string, major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(release, "%d.%d", &a, &b); n != 2 {
		return false
	}
	return a > major || a == major && b >= minor
}

func probeKernel() facility {
	release := kernelRelease()
	return facility{
		Name: "Linux", Checkpoint: true, Restore: true, Found: release + " on " + runtime.GOARCH,
		OK:  kernelAtLeast(release, oldestMajor, oldestMinor) && runtime.GOARCH == "amd64",
		For: fmt.Sprintf("everything: Linux %d.%d or later on x86-64", oldestMajor, oldestMinor),
	}
}

// probeUffd looks at userfaultfd and those of its features that are used.
func probeUffd() []facility {
	s := uffd.Probe()
	open := facility{
		Name: "userfaultfd", OK: s.Usable(), Restore: true, For: "memory that is loaded when it is touched",
		Help: "run as root, or let the group of the users read and write /dev/userfaultfd; in a container, pass the device in",
	}
	switch {
	case s.Device == nil:
		open.Found = "/dev/userfaultfd"
	case s.Syscall == nil:
		open.Found = "the system call; no /dev/userfaultfd"
	default:
		open.Found = (&uffd.OpenError{Device: s.Device, Syscall: s.Syscall}).Error()
	}
	events := uffd.FeatureEventRemap | uffd.FeatureEventRemove | uffd.FeatureEventUnmap
	fork := facility{
		Name: "userfaultfd fork events", OK: s.ForkEvents == nil, Restore: true,
		For:  "programs that fork while they are not loaded; without it their children would read zeros",
		Help: "CAP_SYS_PTRACE is needed, also with /dev/userfaultfd",
	}
	if s.ForkEvents != nil {
		fork.Found = s.ForkEvents.Error()
	}
	return []facility{
		open,
		{Name: "userfaultfd events", OK: s.Features.Has(events), Restore: true, For: "programs that unmap, move or discard memory (Linux 4.11)"},
		fork,
		{Name: "userfaultfd shared memory", OK: s.Features.Has(uffd.FeatureMissingShmem), For: "shared memory that is loaded when it is touched (Linux 4.11); without it, at once"},
		{Name: "userfaultfd huge pages", OK: s.Features.Has(uffd.FeatureMissingHugetlbfs), For: "hugetlb memory that is loaded when it is touched (Linux 4.11); without it, at once"},
		{Name: "userfaultfd poison", OK: s.Features.Has(uffd.FeaturePoison), For: "SIGBUS for who touches a page that is lost for good (Linux 6.6); without it the program waits"},
	}
}

// probeCalls tries system calls on ourselves.
func probeCalls() []facility {
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err == nil {
		defer unix.Close(pidfd)
	}
	list := []facility{result(facility{Name: "pidfd_open", Restore: true, For: "a process that cannot be taken for another (Linux 5.3)"}, err)}
	fd, err := unix.PidfdGetfd(pidfd, 0, 0)
	if err == nil {
		unix.Close(fd)
	}
	return append(list,
		result(facility{
			Name: "pidfd_getfd", Checkpoint: true, Restore: true, For: "descriptors of a process (Linux 5.6)",
			Help: "CAP_SYS_PTRACE is needed for processes of others",
		}, ignore(err, unix.EBADF)),
		result(facility{Name: "clone3", Restore: true, For: "threads and processes under their old ids (set_tid, Linux 5.5)", Help: "a seccomp filter may deny it: containers need a recent runtime"}, ignore(tryClone3(), unix.EINVAL)),
		result(facility{Name: "process_vm_readv", Checkpoint: true, For: "reading the memory of a process"}, tryReadMemory(os.Getpid())),
		result(facility{Name: "prctl PR_SET_MM_MAP", Restore: true, For: "the heap, the arguments and the auxiliary vector at their old places", Help: "the kernel needs CONFIG_CHECKPOINT_RESTORE"}, trySetMM()),
		result(facility{Name: "arch_prctl ARCH_MAP_VDSO_64", Restore: true, For: "the vDSO at its old place", Help: "the kernel needs CONFIG_CHECKPOINT_RESTORE"}, ignore(tryMapVDSO(), unix.EEXIST)),
		result(facility{Name: "PAGEMAP_SCAN", For: "quick lists of a process's pages (Linux 6.7); without it, /proc/PID/pagemap is read"}, tryPagemapScan()),
		result(facility{Name: "process_madvise", For: "huge pages rebuilt once all is loaded (MADV_COLLAPSE, Linux 6.1); without it, khugepaged does it in its time"}, tryCollapse(pidfd)),
	)
}

// result fills in what a try gave.
func result(f facility, err error) facility {
	f.OK = err == nil
	if err != nil {
		f.Found = err.Error()
	}
	return f
}

// ignore is nil for an error that shows that the facility is there.
func ignore(err, expected error) error {
	if errors.Is(err, expected) {
		return nil
	}
	return err
}

// probePtrace traces a child of ours.
func probePtrace() []facility {
	trace := facility{Name: "ptrace", Checkpoint: true, Restore: true, For: "stopping a process, its registers, running system calls in it"}
	slack := facility{Name: "timer slack", Checkpoint: true, For: "the timer slack of a process", Help: "CAP_SYS_NICE is needed"}
	files := facility{
		Name: "map_files", Checkpoint: true, For: "the files that a process has mapped (/proc/PID/map_files)",
		Help: "CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN is needed, and not of a user namespace of a container's own",
	}
	rseq := facility{Name: "restartable sequences", Checkpoint: true, For: "programs of glibc 2.35 and later (PTRACE_GET_RSEQ_CONFIGURATION, Linux 5.13)"}
	if scope, err := readWord(ptraceScope); err == nil && scope != "0" {
		trace.Help = "kernel.yama.ptrace_scope is " + scope + ": only root, or who has CAP_SYS_PTRACE, may trace processes that are not its children"
	}
	errTrace, errRseq, errSlack := tryTrace()
	return []facility{result(trace, errTrace), result(rseq, errRseq), result(slack, errSlack), result(files, tryMapFiles())}
}

// ptraceScope says whom one may trace who lacks CAP_SYS_PTRACE: with 0 all processes of one's own
// user, with 1 one's descendants alone.
const ptraceScope = "/proc/sys/kernel/yama/ptrace_scope"

// tryMapFiles follows a link to a file that we have mapped.
func tryMapFiles() error {
	const dir = "/proc/self/map_files"
	links, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(links) == 0 {
		return &fs.PathError{Op: "read", Path: dir, Err: fs.ErrNotExist}
	}
	_, err = os.Stat(dir + "/" + links[0].Name())
	return err
}

// tryTrace starts a child, reads its timer slack, stops it and asks for its registers
// and its restartable sequences.
func tryTrace() (trace, rseq, slack error) {
	cmd := exec.Command("/proc/self/exe", waitVerb)
	cmd.Args[0] = os.Args[0]
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err, err, err
	}
	if err := cmd.Start(); err != nil {
		return err, err, err
	}
	defer cmd.Wait()
	defer stdin.Close()

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pid := cmd.Process.Pid
	_, slack = proc.ReadTimerSlack(pid)
	if err := unix.PtraceSeize(pid); err != nil {
		return err, err, slack
	}
	defer unix.PtraceDetach(pid)
	if err := unix.PtraceInterrupt(pid); err != nil {
		return err, err, slack
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, unix.WALL, nil); err != nil {
		return err, err, slack
	}
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &regs); err != nil {
		return err, err, slack
	}
	return nil, tryRseqConfiguration(pid), slack
}

// probeNamespaces makes the namespaces that a restored process may get.
func probeNamespaces() []facility {
	const admin = "CAP_SYS_ADMIN is needed; user.max_pid_namespaces and user.max_time_namespaces may forbid them"
	return []facility{
		result(facility{Name: "pid namespaces", For: "restore --pid-ns", Help: admin}, tryPIDNamespace()),
		result(facility{Name: "time namespaces", For: "clocks that would run backwards after a restart of the machine, or on another (Linux 6.3)", Help: admin}, tryTimeNamespace()),
	}
}

// tryPIDNamespace makes one, and ends it.
func tryPIDNamespace() error {
	n, err := proc.NewPIDNamespace()
	if err != nil {
		return err
	}
	return n.End()
}

// tryTimeNamespace makes one for children of a thread, which ends then.
func tryTimeNamespace() error {
	tried := make(chan error)
	go func() {
		runtime.LockOSThread()
		if release := kernelRelease(); !kernelAtLeast(release, 6, 3) {
			tried <- errors.New("an execve does not lead into them in Linux " + release)
			return
		}
		tried <- unix.Unshare(unix.CLONE_NEWTIME)
	}()
	return <-tried
}

// probeCapabilities says which privileges this command has, by its status, and where Yama
// has that scope. What they allow is tried where that can be; a user namespace's go less far.
func probeCapabilities(status []byte, scope string) []facility {
	held, err := proc.ParseStatus(status)
	has := func(number uint) bool { return err == nil && held.CapEff&(1<<number) != 0 }
	// Not of the executable: a capability of a file does not reach the process that is restored.
	const help = "run as root, or give the user the capability as an ambient one: setpriv(1), pam_cap(8), AmbientCapabilities= of systemd"
	trace := facility{
		Name: "CAP_SYS_PTRACE", OK: has(unix.CAP_SYS_PTRACE), Checkpoint: scope != "0", Restore: true,
		For: "processes of others, and programs that fork while they are not loaded", Help: help,
	}
	if trace.Checkpoint && !trace.OK {
		trace.Found = "kernel.yama.ptrace_scope is " + scope + ": without it, processes of the same user cannot be traced either"
	}
	return []facility{
		trace,
		{
			Name: "CAP_CHECKPOINT_RESTORE", OK: has(unix.CAP_CHECKPOINT_RESTORE) || has(unix.CAP_SYS_ADMIN), Restore: true,
			For: "the old pids (CAP_SYS_ADMIN does too)", Help: help,
		},
		{
			Name: "CAP_SYS_NICE", OK: has(unix.CAP_SYS_NICE),
			For: "real-time priorities, and huge pages rebuilt in other processes", Help: help,
		},
		{Name: "CAP_SYS_RESOURCE", OK: has(unix.CAP_SYS_RESOURCE), For: "limits above the hard limits of this session"},
	}
}

// probeLimits reads what large processes meet.
func probeLimits() []limit {
	list := []limit{
		{"open files", resource(unix.RLIMIT_NOFILE, strconv.FormatUint), "descriptors of a process"},
		{"locked memory", resource(unix.RLIMIT_MEMLOCK, func(n uint64, _ int) string { return sizeText(n) }), "memory locked by a process"},
	}
	for _, l := range []struct{ name, path, why string }{
		{"mappings", "/proc/sys/vm/max_map_count", "VMAs of a process"},
		{"largest pid", "/proc/sys/kernel/pid_max", "the old pid must be below"},
		{"overcommit", "/proc/sys/vm/overcommit_memory", "2 refuses large mappings that are not loaded"},
		{"transparent huge pages", "/sys/kernel/mm/transparent_hugepage/enabled", "they are rebuilt as they were"},
	} {
		value, err := readWord(l.path)
		if err != nil {
			value = "unknown"
		}
		list = append(list, limit{l.name, value, l.why})
	}
	if m, err := proc.ParseMeminfo(readFile("/proc/meminfo")); err == nil {
		list = append(list, limit{"memory available", sizeText(m.Available), "page cache included"})
	}
	return list
}

// resource is the soft limit of a resource.
func resource(which int, text func(uint64, int) string) string {
	var r unix.Rlimit
	if err := unix.Getrlimit(which, &r); err != nil {
		return "unknown"
	}
	if r.Cur == unix.RLIM_INFINITY {
		return "unlimited"
	}
	return text(r.Cur, 10)
}

// readWord is the content of a small file; of a choice like "always [madvise]
// never" the chosen word.
func readWord(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	word := strings.TrimSpace(string(text))
	if _, after, ok := strings.Cut(word, "["); ok {
		word, _, _ = strings.Cut(after, "]")
	}
	if word == "" {
		return "", fs.ErrNotExist
	}
	return word, nil
}

// readFile is the content of a file, nothing if it cannot be read.
func readFile(path string) []byte {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return text
}
