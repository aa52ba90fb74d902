package proc

import (
	"errors"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestReadSelf reads everything of this process: what this kernel writes must
// be known.
func TestReadSelf(t *testing.T) {
	pid := os.Getpid()
	smaps, err := ReadSmaps(pid)
	if err != nil || len(smaps.VMAs) < 10 || len(smaps.Unknown) > 0 {
		t.Errorf("smaps: %d mappings, unknown %q, %v", len(smaps.VMAs), smaps.Unknown, err)
	}
	if _, err := SyscallInsn(pid, smaps.VMAs); err != nil {
		t.Error(err)
	}
	status, err := ReadStatus(pid)
	if err != nil || status.Pid != pid || status.PPid != os.Getppid() || !status.HasMM || len(status.Unknown) > 0 {
		t.Errorf("status: %+v, %v", status, err)
	}
	stat, err := ReadStat(pid)
	if err != nil || stat.PID != pid || stat.StartStack == 0 || stat.EnvEnd == 0 || len(stat.Unknown) > 0 {
		t.Errorf("stat: %+v, %v", stat, err)
	}
	auxv, err := ReadAuxv(pid)
	if v, ok := auxv.Get(6); err != nil || !ok || v != uint64(os.Getpagesize()) {
		t.Errorf("auxv: %v, %v", auxv, err)
	}
	var want unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &want); err != nil {
		t.Fatal(err)
	}
	limits, err := ReadLimits(pid)
	if err != nil || limits[unix.RLIMIT_NOFILE] != (Limit{want.Cur, want.Max}) {
		t.Errorf("limits: %v, %v; want %v files", limits, err, want)
	}
	if tids, err := ReadTasks(pid); err != nil || !slices.Contains(tids, pid) {
		t.Errorf("threads: %v, %v", tids, err)
	}
	for name, f := range map[string]func() error{
		"timers":      func() error { _, err := ReadTimers(pid); return err },
		"personality": func() error { _, err := ReadPersonality(pid); return err },
		"oom score":   func() error { _, err := ReadOOMScoreAdj(pid); return err },
		"timer slack": func() error { _, err := ReadTimerSlack(pid); return err },
		"cgroups":     func() error { _, err := ReadCgroups(pid); return err },
		"meminfo":     func() error { _, err := ReadMeminfo(); return err },
		"headroom":    func() error { _, _, err := MemoryHeadroom(pid); return err },
	} {
		if err := f(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadFDs(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	links, err := ReadFDs(os.Getpid())
	if err != nil || !slices.Contains(links, FDLink{int(f.Fd()), os.DevNull}) {
		t.Errorf("descriptors %v, %v", links, err)
	}
	info, err := ReadFDInfo(os.Getpid(), int(f.Fd()))
	if err != nil || info.Flags&unix.O_ACCMODE != unix.O_RDONLY || info.Flags&unix.O_CLOEXEC == 0 || len(info.Unknown) > 0 {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestReadGone(t *testing.T) {
	const pid = 1<<22 + 1
	for name, f := range map[string]func() error{
		"status": func() error { _, err := ReadStatus(pid); return err },
		"smaps":  func() error { _, err := ReadSmaps(pid); return err },
		"tasks":  func() error { _, err := ReadTasks(pid); return err },
		"fds":    func() error { _, err := ReadFDs(pid); return err },
	} {
		if err := f(); !errors.Is(err, ErrNoProcess) {
			t.Errorf("%s: %v, want ErrNoProcess", name, err)
		}
	}
	if _, err := ReadFile(os.Getpid(), "no such file"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestHeadroom(t *testing.T) {
	root := t.TempDir()
	write := func(name, value string) {
		t.Helper()
		if err := os.WriteFile(root+"/"+name, []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(root+"/a/b", 0o700); err != nil {
		t.Fatal(err)
	}
	const big = "9223372036854771712" // version 1's "no limit"
	for _, tt := range []struct {
		a, b [2]string // max and current
		want uint64
	}{
		{[2]string{"max", "5"}, [2]string{"max", "5"}, Unlimited},
		{[2]string{"1000", "600"}, [2]string{"max", "5"}, 400},
		{[2]string{"1000", "600"}, [2]string{"100", "50"}, 50},
		{[2]string{"1000", "990"}, [2]string{"100", "50"}, 10},
		{[2]string{"max", "5"}, [2]string{"100", "150"}, 0},
		{[2]string{big, "5"}, [2]string{big, "5"}, Unlimited},
	} {
		write("a/memory.max", tt.a[0])
		write("a/memory.current", tt.a[1])
		write("a/b/memory.max", tt.b[0])
		write("a/b/memory.current", tt.b[1])
		if got := headroom(root, "/a/b", "memory.max", "memory.current"); got != tt.want {
			t.Errorf("%v: %d, want %d", tt, got, tt.want)
		}
	}
	if got := headroom(root, "/../..", "memory.max", "memory.current"); got != Unlimited {
		t.Errorf("outside of the tree: %d", got)
	}
}

func TestAbortRSeq(t *testing.T) {
	a, mem := testMemory(t, 1)
	put := func(off int, v uint64) {
		for i := range 8 {
			mem[off+i] = byte(v >> (8 * i))
		}
	}
	const start, length, abort = 0x401000, 0x20, 0x402000
	put(64+8, start)
	put(64+16, length)
	put(64+24, abort)
	for _, tt := range []struct {
		cs        bool
		rip, want uint64
	}{
		{false, start, start},
		{true, start - 1, start - 1},
		{true, start, abort},
		{true, start + length - 1, abort},
		{true, start + length, start + length},
	} {
		put(8, 0)
		if tt.cs {
			put(8, a.Base()+64)
		}
		var r Regs
		r[RIP] = tt.rip
		if err := abortRSeq(os.Getpid(), a.Base(), &r); err != nil || r[RIP] != tt.want {
			t.Errorf("%+v: %#x, %v", tt, r[RIP], err)
		}
	}
}

func TestInterrupted(t *testing.T) {
	const nanosleep, eintr = 35, ^uint64(3) // -EINTR
	for _, tt := range []struct {
		rax      int64
		orig     uint64
		wantRAX  uint64
		wantBack uint64 // bytes that RIP goes back
	}{
		{-restartSys, nanosleep, nanosleep, 2},
		{-restartNoIntr, nanosleep, nanosleep, 2},
		{-restartNoHand, nanosleep, nanosleep, 2},
		{-restartBlock, nanosleep, nanosleep, 2},
		{-restartBlock, sysRestart, eintr, 0},
		{7, nanosleep, 7, 0},
		{-restartSys, NoSyscall, -restartSys & (1<<64 - 1), 0},
	} {
		var r Regs
		r[RAX], r[OrigRAX], r[RIP] = uint64(tt.rax), tt.orig, 0x1000
		got := r.interrupted()
		if got[RAX] != tt.wantRAX || got[RIP] != 0x1000-tt.wantBack || got[OrigRAX] != NoSyscall {
			t.Errorf("%+v: %#x at %#x", tt, got[RAX], got[RIP])
		}
	}
}
