package proc

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

func capture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// find is the only mapping of a capture for which ok holds.
func find(t *testing.T, vmas []VMA, what string, ok func(VMA) bool) VMA {
	t.Helper()
	var found []VMA
	for _, v := range vmas {
		if ok(v) {
			found = append(found, v)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d mappings are %s, want 1", len(found), what)
	}
	return found[0]
}

func TestSmapsCapture(t *testing.T) {
	s, err := ParseSmaps(capture(t, "smaps"))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.VMAs) != 39 || len(s.Unknown) != 0 {
		t.Errorf("%d mappings, unknown %q; want 39 and none", len(s.VMAs), s.Unknown)
	}
	kinds := map[VMAKind]int{}
	for _, v := range s.VMAs {
		kinds[v.Kind]++
	}
	want := map[VMAKind]int{
		VMAAnonymous: 12, VMAFile: 21, VMAHeap: 1, VMAStack: 1,
		VMAVDSO: 1, VMAVVar: 1, VMAVVarClock: 1, VMAVSyscall: 1,
	}
	if d := cmp.Diff(want, kinds); d != "" {
		t.Errorf("kinds (-want +got):\n%s", d)
	}
	nl := find(t, s.VMAs, "shared with a newline", func(v VMA) bool { return v.Shared && v.Path == "/tmp/with blank\nand newline" })
	wantNL := VMA{
		Range: page.Range{Start: 0x7f02d6270000, End: 0x7f02d6280000}, Prot: ProtRead, Shared: true,
		Kind: VMAFile, DevMajor: 0xfe, Inode: 9977969, Path: "/tmp/with blank\nand newline", PageSize: 4096,
		Flags: VMRead | VMShared | VMMayRead | VMMayWrite | VMMayExec | VMMayShare,
	}
	if d := cmp.Diff(wantNL, nl); d != "" {
		t.Errorf("mapping (-want +got):\n%s", d)
	}
	gone := find(t, s.VMAs, "deleted", func(v VMA) bool { return v.Path == "/tmp/gone file" })
	if !gone.Deleted {
		t.Error("/tmp/gone file is not marked as deleted")
	}
	find(t, s.VMAs, "sealed", func(v VMA) bool { return v.Flags.Has(VMSealed) && v.Prot == 0 })
	find(t, s.VMAs, "droppable", func(v VMA) bool { return v.Flags.Has(VMDroppable | VMWipeOnFork) })
	find(t, s.VMAs, "locked", func(v VMA) bool { return v.Flags.Has(VMLocked) && v.Locked == 64<<10 })
	find(t, s.VMAs, "huge", func(v VMA) bool { return v.Flags.Has(VMHugePage) && v.AnonHuge == 2<<20 })
}

func TestMapsAgreesWithSmaps(t *testing.T) {
	maps, err := ParseMaps(capture(t, "maps"))
	if err != nil {
		t.Fatal(err)
	}
	smaps, err := ParseSmaps(capture(t, "smaps"))
	if err != nil {
		t.Fatal(err)
	}
	headers := cmpopts.IgnoreFields(VMA{}, "Flags", "PageSize", "Rss", "Anonymous", "AnonHuge", "Swap", "Locked")
	if d := cmp.Diff(smaps.VMAs, maps, headers); d != "" {
		t.Errorf("smaps and maps differ:\n%s", d)
	}
}

func TestMapsNames(t *testing.T) {
	const head = "1000-2000 rw-p 00000000 00:00 0                          "
	for _, tt := range []struct {
		name string
		want VMA
	}{
		{"", VMA{}},
		{"[heap]", VMA{Kind: VMAHeap}},
		{"[anon:my area]", VMA{Kind: VMANamed, Path: "my area"}},
		{"[anon:a]b]", VMA{Kind: VMANamed, Path: "a]b"}},
		{"[anon_shmem:x]", VMA{Kind: VMANamedShared, Path: "x"}},
		{"[uprobes]", VMA{Kind: VMAOther, Path: "[uprobes]"}},
		{"[", VMA{Kind: VMAOther, Path: "["}},
		{"anon_inode:[perf_event]", VMA{Kind: VMAOther, Path: "anon_inode:[perf_event]"}},
		{"/a b  c ", VMA{Kind: VMAFile, Path: "/a b  c "}},
		{`/back\slash\0120`, VMA{Kind: VMAFile, Path: "/back\\slash\n0"}},
		{"/x (deleted)", VMA{Kind: VMAFile, Path: "/x", Deleted: true}},
		{"/[heap]", VMA{Kind: VMAFile, Path: "/[heap]"}},
	} {
		got, err := ParseMaps([]byte(head + tt.name + "\n"))
		if err != nil || len(got) != 1 {
			t.Errorf("%q: %v, %v", tt.name, got, err)
			continue
		}
		tt.want.Range, tt.want.Prot = page.Range{Start: 0x1000, End: 0x2000}, ProtRead|ProtWrite
		if d := cmp.Diff(tt.want, got[0]); d != "" {
			t.Errorf("%q (-want +got):\n%s", tt.name, d)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	const m = "1000-2000 rw-p 00000000 00:00 0 \n"
	smaps := func(b []byte) error { _, err := ParseSmaps(b); return err }
	maps := func(b []byte) error { _, err := ParseMaps(b); return err }
	status := func(b []byte) error { _, err := ParseStatus(b); return err }
	stat := func(b []byte) error { _, err := ParseStat(b); return err }
	fdinfo := func(b []byte) error { _, err := ParseFDInfo(b); return err }
	limits := func(b []byte) error { _, err := ParseLimits(b); return err }
	for _, tt := range []struct {
		parse func([]byte) error
		in    string
		want  string // part of the error
	}{
		{smaps, "Rss: 4 kB\n", "before the first mapping"},
		{smaps, m + "Rss: 4 MB\n", "Rss"},
		{smaps, m + "Rss: 99999999999999999 kB\n", "Rss"},
		{smaps, m + "nonsense\n", "neither"},
		{maps, "2000-1000 rw-p 00000000 00:00 0\n", "not a mapping"},
		{maps, "1000-2000 rwxq 00000000 00:00 0\n", "not a mapping"},
		{maps, "1000-2000 r-yp 00000000 00:00 0\n", "not a mapping"},
		{maps, "1000-2000 rw-p 00000000 0000 0\n", "not a mapping"},
		{maps, "1000-20000000000000000 rw-p 00000000 00:00 0\n", "not a mapping"},
		{maps, "\n", "not a mapping"},
		{status, "", "empty"},
		{status, "Name:\tx\n", "no line Pid"},
		{status, "Pid:\t1\nUid:\t1\t2\t3\n", "3 ids"},
		{status, "Pid:\t99999999999\n", "Pid"},
		{stat, "1 (x) S 1 2 3", "fields"},
		{stat, "1 x S 1 2 3", "no name"},
		{fdinfo, "pos:\t0\n", "no lines"},
		{fdinfo, "pos:\t0\nflags:\t09\n", "flags"},
		{fdinfo, "pos:\t0\nflags:\t0\ntfd: 1 events: 1\n", "missing"},
		{limits, "", "heading"},
		{limits, "Limit   Soft\nMax new thing  1  2  x\n", "unknown line"},
		{limits, "Limit   Soft\nMax cpu time  1  2  seconds\n", "not all"},
	} {
		err := tt.parse([]byte(tt.in))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: error %v, want one with %q", tt.in, err, tt.want)
		}
	}
}

func TestStatusCapture(t *testing.T) {
	s, err := ParseStatus(capture(t, "status"))
	if err != nil {
		t.Fatal(err)
	}
	want := Status{
		Name: "a) b (\n\\c)", Umask: 0o027, HasUmask: true, State: 'S', Tgid: 7115, Pid: 7115, PPid: 1,
		NStgid: []int{7115}, NSpid: []int{7115}, NSpgid: []int{7054}, NSsid: []int{4716},
		TellsKthread: true, HasMM: true, Threads: 1, CapPrm: 0x1fffeffffff, CapEff: 0x1fffeffffff, CapBnd: 0x1fffeffffff,
		NoNewPrivs: true, THPEnabled: true, UntagMask: ^uint64(0), SigIgn: 0x806,
		VmRSS: 3616 << 10, VmLck: 64 << 10, VmPTE: 52 << 10, CPUsAllowed: "0-1", MemsAllowed: "0",
		Speculation: [2]string{"vulnerable", "always enabled"},
	}
	if d := cmp.Diff(want, s); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestStatusOther(t *testing.T) {
	s, err := ParseStatus([]byte("Name:\tx\nState:\tt (tracing stop)\nPid:\t7\nGroups:\t4 24 \nNSpid:\t7\t1\n" +
		"x86_Thread_features:\tshstk wrss \nNew_state:\t1\nno colon\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := Status{
		Name: "x", State: 't', Pid: 7, Groups: []uint32{4, 24}, NSpid: []int{7, 1}, THPEnabled: true,
		ThreadFeatures: "shstk wrss", Unknown: []string{"New_state:\t1", "no colon"},
	}
	if d := cmp.Diff(want, s); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestStatCapture(t *testing.T) {
	s, err := ParseStat(capture(t, "stat"))
	if err != nil {
		t.Fatal(err)
	}
	want := Stat{
		PID: 7115, Comm: "a) b (\n\\c)", State: 'S', PPID: 1, PGRP: 7054, Session: 4716, ForegroundPGRP: -1,
		Flags: 4194304, Priority: 20, Threads: 1, StartTime: 202375,
		StartCode: 94544261996544, EndCode: 94544261999289, StartStack: 140734031301568, ExitSignal: 17, Processor: 1,
		StartData: 94544262008272, EndData: 94544262009112, StartBrk: 94544498343936,
		ArgStart: 140734031305381, ArgEnd: 140734031305397, EnvStart: 140734031305397, EnvEnd: 140734031306728,
	}
	if d := cmp.Diff(want, s); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestSmapsUnknownFlags(t *testing.T) {
	got, err := ParseSmaps([]byte("1000-2000 rw-p 00000000 00:00 0 \nVmFlags: rd zz wr q??\n"))
	if err != nil {
		t.Fatal(err)
	}
	if v := got.VMAs[0]; v.Flags != VMRead|VMWrite || !slices.Equal(v.UnknownFlags, []string{"zz", "q??"}) {
		t.Errorf("flags %v, unknown %q", v.Flags, v.UnknownFlags)
	}
}

func TestFDInfoCaptures(t *testing.T) {
	base := FDInfo{Flags: 2, MntID: 17, Inode: 1038}
	with := func(change func(*FDInfo)) FDInfo {
		f := base
		change(&f)
		return f
	}
	for name, want := range map[string]FDInfo{
		"epoll": with(func(f *FDInfo) {
			f.Epoll = []EpollTarget{
				{FD: 7, Events: 0x80000019, Data: 0x1122334455667788, Inode: 0x40e, Dev: 0x10},
				{FD: 8, Events: 0x1c, Data: 9, Inode: 0x40e, Dev: 0x10},
			}
		}),
		"eventfd": with(func(f *FDInfo) {
			f.IsEventFD, f.EventCount, f.EventFDID, f.EventFDSem, f.HasSemaphore = true, 7, 1, true, true
		}),
		"file": {
			Pos: 1234, Flags: 0o100002, MntID: 27, Inode: 9977969, Locks: []string{
				"1: FLOCK  ADVISORY  WRITE 7115 fe:00:9977969 0 EOF",
				"2: OFDLCK ADVISORY  WRITE -1 fe:00:9977969 0 EOF",
			},
		},
		"timerfd": with(func(f *FDInfo) {
			f.IsTimerFD, f.Timer = true, TimerFD{Clock: 1, Value: [2]uint64{99, 475728119}, Interval: [2]uint64{1, 0}}
		}),
		"inotify": with(func(f *FDInfo) {
			f.Inotify = []InotifyWatch{{WD: 1, Inode: 0x3c4a3, Dev: 0xfe00000, Mask: 0x100, HandleType: 1, Handle: []byte{0xa3, 0xc4, 3, 0, 0, 0, 0, 0}}}
			f.Flags = 0
		}),
		"signalfd": with(func(f *FDInfo) { f.IsSignalFD, f.SigMask = true, 0x200 }),
	} {
		got, err := ParseFDInfo(capture(t, "fdinfo/"+name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func TestSmallCaptures(t *testing.T) {
	timers, err := ParseTimers(capture(t, "timers"))
	if err != nil {
		t.Fatal(err)
	}
	want := []Timer{
		{ID: 2, Signal: 34, Value: 0xdeadbeef, Notify: "signal", Thread: true, Target: 7115, Clock: -2},
		{ID: 1, Signal: 34, Value: 0xdeadbeef, Notify: "none", Target: 7115, Clock: 1},
		{ID: 0, Signal: 34, Value: 0xdeadbeef, Notify: "signal", Target: 7115},
	}
	if d := cmp.Diff(want, timers); d != "" {
		t.Errorf("timers (-want +got):\n%s", d)
	}
	limits, err := ParseLimits(capture(t, "limits"))
	if err != nil || limits[3] != (Limit{8388608, Unlimited}) || limits[4] != (Limit{0, Unlimited}) ||
		limits[7] != (Limit{20000, 20000}) || limits[15] != (Limit{Unlimited, Unlimited}) {
		t.Errorf("limits %v, %v", limits, err)
	}
	auxv, err := ParseAuxv(capture(t, "auxv"))
	if v, ok := auxv.Get(AuxSysinfoEHDR); err != nil || !ok || v != 0x7f02d6a1f000 {
		t.Errorf("auxv: vDSO at %#x, %v, %v", v, ok, err)
	}
	pers, err := ParsePersonality([]byte("00040000\n"))
	if err != nil || pers != 0x40000 {
		t.Errorf("personality %#x, %v", pers, err)
	}
	mem, err := ParseMeminfo(capture(t, "meminfo"))
	if err != nil || mem.Total != 24684084<<10 || mem.Available == 0 || mem.HugePageSize != 2<<20 {
		t.Errorf("meminfo %+v, %v", mem, err)
	}
	groups, err := ParseCgroups([]byte("4:memory:/a:b\n1:cpu,cpuacct:/\n0::/user.slice\n"))
	wantGroups := []Cgroup{{4, "memory", "/a:b"}, {1, "cpu,cpuacct", "/"}, {0, "", "/user.slice"}}
	if d := cmp.Diff(wantGroups, groups); err != nil || d != "" {
		t.Errorf("cgroups %v (-want +got):\n%s", err, d)
	}
}

func TestParseMounts(t *testing.T) {
	mounts, err := ParseMounts(capture(t, "mountinfo"))
	want := []Mount{
		{"254:1", "/", "/", "ext4"},
		{"0:22", "/", "/proc", "proc"},
		{"0:23", "/", "/sys", "sysfs"},
		{"0:5", "/", "/dev", "devtmpfs"},
		{"8:3", `/home/a\040b`, `/mnt/with\040blank`, "btrfs"},
	}
	if d := cmp.Diff(want, mounts); err != nil || d != "" {
		t.Errorf("mounts %v (-want +got):\n%s", err, d)
	}
	for _, bad := range []string{
		"24 1 254:1 / / rw shared:1\n",       // no file system
		"24 1 254:1 / - ext4 /dev/vda1 rw\n", // no options
		"24 1 254:1 / / rw - ext4\n", "\n",   // no source, nothing
	} {
		if list, err := ParseMounts([]byte(bad)); err == nil {
			t.Errorf("%q reads as %v", bad, list)
		}
	}
	if list, err := ReadMounts(os.Getpid()); err != nil || len(list) == 0 {
		t.Errorf("our own mounts: %v, %v", list, err)
	}
}

func TestVMFlagsTable(t *testing.T) {
	if vmFlagCount != 37 || VMMaybeGuard != 1<<(vmFlagCount-1) {
		t.Fatalf("%d words, last constant %#x", vmFlagCount, uint64(VMMaybeGuard))
	}
	all := VMFlags(1<<vmFlagCount - 1)
	back, err := parseVMFlags([]byte(all.String()))
	if err != nil || back != all {
		t.Errorf("%s reads as %s, %v", all, back, err)
	}
	for f, want := range map[VMFlags]string{
		VMRead: "rd", VMMayShare: "ms", VMGrowsDown: "gd", VMLocked: "lo", VMAccount: "ac", VMHugeTLB: "ht",
		VMWipeOnFork: "wf", VMSoftDirty: "sd", VMNoHugePage: "nh", VMUffdMissing: "um", VMUffdWP: "uw",
		VMUffdMinor: "ui", VMShadowStack: "ss", VMSealed: "sl", VMDroppable: "dp", VMMaybeGuard: "gu",
	} {
		if f.String() != want {
			t.Errorf("%#x is %q, want %q", uint64(f), f, want)
		}
	}
}

// bigSmaps is the smaps of a process with many mappings.
func bigSmaps(n int) []byte {
	var b bytes.Buffer
	for i := range n {
		a := 0x7f0000000000 + i*0x3000
		fmt.Fprintf(&b, "%x-%x rw-p 00000000 00:00 0 \n", a, a+0x2000)
		for _, k := range strings.Fields("Size: KernelPageSize: MMUPageSize: Rss: Pss: Pss_Dirty: Shared_Clean: " +
			"Shared_Dirty: Private_Clean: Private_Dirty: Referenced: Anonymous: KSM: LazyFree: AnonHugePages: " +
			"ShmemPmdMapped: FilePmdMapped: Shared_Hugetlb: Private_Hugetlb: Swap: SwapPss: Locked:") {
			fmt.Fprintf(&b, "%-16s %8d kB\n", k, 8)
		}
		b.WriteString("THPeligible:           0\nVmFlags: rd wr mr mw me ac \n")
	}
	return b.Bytes()
}

func TestSmapsMany(t *testing.T) {
	s, err := ParseSmaps(bigSmaps(20000))
	if err != nil || len(s.VMAs) != 20000 || s.Unknown != nil {
		t.Fatalf("%d mappings, unknown %q, %v", len(s.VMAs), s.Unknown, err)
	}
	in := bigSmaps(1000)
	if n := testing.AllocsPerRun(5, func() { _, _ = ParseSmaps(in) }); n > 2 {
		t.Errorf("%v allocations for 1000 mappings without names, want 2 at most", n)
	}
}

func BenchmarkParseSmaps20000(b *testing.B) {
	in := bigSmaps(20000)
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		if _, err := ParseSmaps(in); err != nil {
			b.Fatal(err)
		}
	}
}
