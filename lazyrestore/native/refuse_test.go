package native

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// These are refusals of state that a test cannot have everywhere: the capture
// is shown what /proc would say of it.

func newCapture(pid int) *capture {
	return &capture{pid: pid, st: new(State), files: make(map[fileID]uint32), objects: make(map[objectID]*object)}
}

// wantRefusal checks that the capture has one reason, about what and for why.
func wantRefusal(t *testing.T, c *capture, what, why string) {
	t.Helper()
	var refused *RefusedError
	if !errors.As(c.refused.err(), &refused) {
		t.Fatalf("not refused; want %s: %s", what, why)
	}
	for _, r := range refused.Reasons {
		if strings.Contains(r.What, what) && strings.Contains(r.Why, why) {
			return
		}
	}
	t.Errorf("refused for %v; want %s: %s", refused.Reasons, what, why)
}

func TestRefusesMapping(t *testing.T) {
	r := page.Range{Start: 0x10000, End: 0x20000}
	tests := []struct {
		name string
		vma  proc.VMA
		why  string
	}{
		{"odd-pages", proc.VMA{PageSize: 2 << 20}, "pages of 2097152 bytes"},
		{"sealed", proc.VMA{Flags: proc.VMSealed}, "flags are not preserved"},
		{"shadow-stack", proc.VMA{Flags: proc.VMShadowStack}, "flags are not preserved"},
		{"write-tracked", proc.VMA{Flags: proc.VMUffdWP}, "flags are not preserved"},
		{"device-memory", proc.VMA{Flags: proc.VMIO | proc.VMPFNMap}, "flags are not preserved"},
		{"unknown-flag", proc.VMA{UnknownFlags: []string{"zz"}}, "flags are not known to this version: zz"},
		{"protection-key", proc.VMA{ProtectionKey: 1}, "protection key"},
		{"unknown-name", proc.VMA{Kind: proc.VMAOther, Path: "[news]"}, "type are not preserved"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := tt.vma
			v.Range = r
			if v.PageSize == 0 {
				v.PageSize = page.Size
			}
			c := newCapture(os.Getpid())
			if err := c.mapping(&v); err != nil {
				t.Fatal(err)
			}
			wantRefusal(t, c, "mapping 00010000-00020000", tt.why)
		})
	}
	t.Run("abandoned", func(t *testing.T) {
		c := newCapture(os.Getpid())
		c.smaps.VMAs = []proc.VMA{{Range: r, Flags: proc.VMUffdMissing}}
		c.refuseAbandoned(false)
		wantRefusal(t, c, "mapping 00010000-00020000 (anonymous)", "no pager of ours answers")
		c.smaps.VMAs = append(c.smaps.VMAs, proc.VMA{}, c.smaps.VMAs[0])
		c.refuseAbandoned(true)
		wantRefusal(t, c, "mapping 00010000-00020000 (anonymous) and 1 more", "pager of the process was killed")
	})
	t.Run("no-vdso", func(t *testing.T) {
		c := newCapture(os.Getpid())
		if err := c.vdso(); err != nil {
			t.Fatal(err)
		}
		wantRefusal(t, c, "vDSO", "unmapped")
	})
	t.Run("vdso", func(t *testing.T) {
		c, mem := vdsoOf(t)
		at := int64(c.st.VDSO.Text.End) - 16
		if sum := c.st.VDSO.Sum; sum == "" || c.behindVDSO.Len() < 16 {
			t.Fatalf("a vDSO with the sum %q ends in %v", sum, c.behindVDSO)
		}
		// as a checkpoint leaves it that is killed amid a detour
		if _, err := mem.WriteAt([]byte("left"), at); err != nil {
			t.Fatal(err)
		}
		sum := c.st.VDSO.Sum
		if err := errors.Join(c.vdso(), c.refused.err()); err != nil || c.st.VDSO.Sum != sum {
			t.Errorf("with something behind its end it has the sum %q instead of %q, %v", c.st.VDSO.Sum, sum, err)
		}
		if _, err := mem.WriteAt([]byte("else"), int64(c.behindVDSO.Start)-4); err != nil {
			t.Fatal(err)
		}
		if err := c.vdso(); err != nil {
			t.Fatal(err)
		}
		wantRefusal(t, c, "vDSO", "not the one")
	})
	t.Run("ordinary", func(t *testing.T) {
		c := newCapture(os.Getpid())
		v := proc.VMA{Range: r, PageSize: page.Size, Flags: proc.VMRead | proc.VMWrite | proc.VMAccount}
		if err := errors.Join(c.mapping(&v), c.refused.err()); err != nil {
			t.Error(err)
		}
	})
}

// vdsoOf is a capture of another process, with its vDSO, and that process's memory.
func vdsoOf(t *testing.T) (*capture, *os.File) {
	t.Helper()
	uffdtest.Need(t, "ptrace")
	cmd := exec.Command("cat")
	in, inErr := cmd.StdinPipe()
	out, outErr := cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	// Start returns amid the execve, when the vDSO may not be mapped yet: what echoes runs.
	echo := make([]byte, 1)
	if _, err := in.Write(echo); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, echo); err != nil {
		t.Fatal(err)
	}
	c := newCapture(cmd.Process.Pid)
	if err := errors.Join(c.readSmaps(), c.vdso(), c.refused.err()); err != nil {
		t.Fatal(err)
	}
	mem, err := os.OpenFile("/proc/"+strconv.Itoa(c.pid)+"/mem", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	return c, mem
}

func TestRefusesProcess(t *testing.T) {
	tests := []struct {
		name   string
		change func(*proc.Status)
		what   string
	}{
		{"shadow-stacks", func(s *proc.Status) { s.ThreadFeatures = "shstk" }, "shstk"},
		{"speculation", func(s *proc.Status) { s.Speculation[0] = "thread mitigated, as no test process is" }, "speculation"},
		{"seccomp", func(s *proc.Status) { s.Seccomp = 2 }, "seccomp"},
		{"tagged-addresses", func(s *proc.Status) { s.UntagMask = 1<<57 - 1 }, "tagged addresses"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newCapture(os.Getpid())
			var err error
			if c.status, err = proc.ReadStatus(os.Getpid()); err != nil {
				t.Fatal(err)
			}
			tt.change(&c.status)
			if err := c.privileges(); err != nil {
				t.Fatal(err)
			}
			wantRefusal(t, c, tt.what, "")
		})
	}
}

func TestRefusesDescriptor(t *testing.T) {
	file := unix.Stat_t{Mode: unix.S_IFREG, Nlink: 1}
	anon := unix.Stat_t{Mode: 0o600, Ino: 77}
	tests := []struct {
		name string
		d    descriptor
		why  string
	}{
		{"breaking-lease", descriptor{link: "/dev/null", stat: unix.Stat_t{Mode: unix.S_IFCHR, Rdev: unix.Mkdev(1, 3)}, info: proc.FDInfo{Locks: []string{"1: LEASE  BREAKING  READ 1 fe:00:2 0 EOF"}}}, "file lock"},
		{"unknown-line", descriptor{link: "/dev/null", stat: unix.Stat_t{Mode: unix.S_IFCHR, Rdev: unix.Mkdev(1, 3)}, info: proc.FDInfo{Unknown: []string{"news: 1"}}}, "news: 1"},
		{"gone-path", descriptor{link: "/nowhere/file", self: "/proc/self/exe", stat: file}, "leads nowhere"},
		{"device", descriptor{link: "/dev/fb0", stat: unix.Stat_t{Mode: unix.S_IFCHR, Rdev: unix.Mkdev(29, 0)}}, "state of this device"},
		{"fifo", descriptor{link: "/nowhere/fifo", stat: unix.Stat_t{Mode: unix.S_IFIFO}}, "removed or replaced"},
		{"epoll-target", descriptor{link: "anon_inode:[eventpoll]", stat: anon, info: proc.FDInfo{Epoll: []proc.EpollTarget{{FD: 8, Inode: 5}}}}, "no descriptor refers to it now"},
		{"fanotify", descriptor{link: "anon_inode:[fanotify]", stat: anon}, "type are not preserved"},
		{"perf-event", descriptor{link: "anon_inode:[perf_event]", stat: anon}, "type are not preserved"},
		{"pidfd", descriptor{link: "anon_inode:[pidfd]", stat: anon}, "type are not preserved"},
		{"bpf", descriptor{link: "anon_inode:bpf-map", stat: anon}, "type are not preserved"},
		{"kvm", descriptor{link: "anon_inode:kvm-vm", stat: anon}, "type are not preserved"},
		{"userfaultfd", descriptor{link: "anon_inode:[userfaultfd]", stat: anon}, "type are not preserved"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newCapture(os.Getpid())
			d := tt.d
			d.num = 7
			c.fds = &fdTable{list: []descriptor{d}, groups: map[string][]*descriptor{d.link: {&d}}}
			if err := c.describe(&d); err != nil {
				t.Fatal(err)
			}
			c.locks(&d)
			wantRefusal(t, c, "descriptor 7 ("+d.link+")", tt.why)
		})
	}
}

// A process in another root directory is refused by that name.
func TestRefusesRootDirectory(t *testing.T) {
	c := newCapture(os.Getpid())
	c.rootDirectory("/elsewhere")
	wantRefusal(t, c, "root directory /elsewhere", "changed its root")
	c = newCapture(os.Getpid())
	c.rootDirectory("/")
	if err := c.refused.err(); err != nil {
		t.Error(err)
	}
}

func TestRefusesThreadWithOtherCredentials(t *testing.T) {
	c := newCapture(1)
	c.st.Creds = Creds{UID: [4]uint32{1, 1, 1, 1}}
	c.threadCredentials(5, &proc.Status{Uid: [4]uint32{1, 1, 1, 1}})
	if err := c.refused.err(); err != nil {
		t.Error(err)
	}
	c.threadCredentials(6, &proc.Status{Uid: [4]uint32{1, 2, 1, 1}})
	wantRefusal(t, c, "thread 6", "credentials differ")
}

// Who has the id of the process is named, and what could be done about it.
func TestTakenID(t *testing.T) {
	cmd := exec.Command("/bin/true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	threads, err := proc.NewTracer() // a thread that stays
	if err != nil {
		t.Fatal(err)
	}
	defer threads.Close()
	var tid int
	if err := threads.Do(func() error { tid = unix.Gettid(); return nil }); err != nil {
		t.Fatal(err)
	}
	me := regexp.QuoteMeta(named(os.Getpid()))
	tests := []struct {
		name      string
		id        int
		why, help string
	}{
		{"a process", os.Getpid(), `^another process has it \(.+\)$`, "wait until"},
		{"a thread", tid, "^a thread of process " + me + " has it$", "wait until"},
		{"a zombie", cmd.Process.Pid, "has ended, but process " + me + ", its parent, has not waited", "have the parent wait"},
		{"nobody any more", 1<<22 + 1, "^another process has it$", "wait until"},
	}
	for _, tt := range tests {
		var r reasons
		r.taken(tt.id)
		if got := r.list[0]; !regexp.MustCompile(tt.why).MatchString(got.Why) || !strings.HasPrefix(got.Help, tt.help) {
			t.Errorf("%s: %q, %q; want %q, %q...", tt.name, got.Why, got.Help, tt.why, tt.help)
		}
	}
}

// A name that a process gave itself has no effect on the terminal that shows it.
func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{"sleep": "sleep", "Web Content": "Web Content", "é (x)": "é (x)", "a\x1b[2Jb\nc\x7f": "a?[2Jb?c?", "\xff\u202ex": "??x"} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}

// What may be hidden is told from all else that is not permitted.
func TestHidden(t *testing.T) {
	var h *HiddenError
	if err := hidden(fmt.Errorf("stat x: %w", unix.EPERM)); !errors.As(err, &h) || !errors.Is(err, unix.EPERM) {
		t.Errorf("%v is not hidden", err)
	}
	if err := hidden(unix.ENOENT); errors.As(err, &h) {
		t.Errorf("%v is hidden", err)
	}
}
