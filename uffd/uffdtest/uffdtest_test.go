package uffdtest_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// recorder is a testing.TB whose ends end a goroutine of their own, and leave
// the test alone.
type recorder struct {
	testing.TB
	skipped, failed string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatal(args ...any) {
	r.failed = fmt.Sprint(args...)
	runtime.Goexit()
}

func (r *recorder) Fatalf(format string, args ...any) { r.Fatal(fmt.Sprintf(format, args...)) }

func (r *recorder) Skipf(format string, args ...any) {
	r.skipped = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// record runs f with a recorder and tells what it decided.
func record(t *testing.T, f func(testing.TB)) (skipped, failed string) {
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return r.skipped, r.failed
}

func TestNeed(t *testing.T) {
	tests := []struct {
		name, facility, require string
		skips, fails            bool
	}{
		{"there", "cmd:sh", "", false, false},
		{"missing", "cmd:no-such-command", "", true, false},
		{"missing, another required", "cmd:no-such-command", "uffd,ptrace", true, false},
		{"missing and required", "cmd:no-such-command", "uffd, cmd:no-such-command", false, true},
		{"missing and all required", "cmd:no-such-command", "all", false, true},
		{"unknown", "uffffd", "", false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv(uffdtest.RequireEnv, tt.require)
			skipped, failed := record(t, func(tb testing.TB) { uffdtest.Need(tb, tt.facility) })
			if (skipped != "") != tt.skips || (failed != "") != tt.fails {
				t.Errorf("skipped %q, failed %q", skipped, failed)
			}
		})
	}
}

// Every facility with a probe of its own answers, one way or the other.
func TestProbes(t *testing.T) {
	t.Setenv(uffdtest.RequireEnv, "")
	for _, facility := range []string{"uffd", "ptrace", "root", "pagemap_scan", "hugetlb", "userns", "criu", "POISON"} {
		skipped, failed := record(t, func(tb testing.TB) { uffdtest.Need(tb, facility) })
		if failed != "" {
			t.Errorf("%s: %s", facility, failed)
		}
		t.Logf("%s: missing: %q", facility, skipped)
	}
}

// A system call's errno is the reply's error.
func TestSyscallErrno(t *testing.T) {
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{Pages: 1})
	if _, err := c.Syscall(unix.SYS_CLOSE, 999).Result(); !errors.Is(err, unix.EBADF) {
		t.Errorf("close(999) = %v, want EBADF", err)
	}
	if pid := c.Syscall(unix.SYS_GETPID).Wait(t); int(pid) != c.Pid {
		t.Errorf("getpid = %d, want %d", pid, c.Pid)
	}
}

// Replies may be waited for in any order, and there are several of a thread.
func TestRepliesInAnyOrder(t *testing.T) {
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{Pages: 4})
	first, second := c.Load(c.Addr(0)), c.Load(c.Addr(1))
	for i := range 2 {
		msg := uffdtest.Next(t, c.FD)
		page := uffdtest.Pattern(uint64(i), c.PageSize)
		if _, err := c.FD.Copy(msg.Fault().Addr, page, 0); err != nil {
			t.Fatal(err)
		}
	}
	if b := byte(second.Wait(t)); b != uffdtest.Pattern(1, 8)[0] {
		t.Errorf("second load gave %d", b)
	}
	if b := byte(first.Wait(t)); b != uffdtest.Pattern(0, 8)[0] {
		t.Errorf("first load gave %d", b)
	}
}

// A child that cannot be set up says why.
func TestNoChild(t *testing.T) {
	uffdtest.Need(t, "uffd")
	_, failed := record(t, func(tb testing.TB) { uffdtest.Start(tb, uffdtest.Options{Features: 1 << 60}) })
	if !strings.Contains(failed, "0x1000000000000000") {
		t.Errorf("Start failed with %q", failed)
	}
}

// When a test ends, neither the child nor what it forked is left, even where
// they wait for pages.
func TestNobodyIsLeft(t *testing.T) {
	uffdtest.Need(t, "uffd")
	var pids []int
	t.Run("test", func(t *testing.T) {
		c := uffdtest.Start(t, uffdtest.Options{Features: uffd.FeatureEventFork})
		forked, pid := c.Fork(t)
		msg := uffdtest.Next(t, c.FD)
		f := uffd.FromFD(msg.Fork())
		t.Cleanup(func() { _ = f.Close() }) // later than c's own
		pids = []int{c.Pid, int(pid.Wait(t))}
		c.Load(c.Addr(0))
		forked.Load(c.Addr(0))
		uffdtest.Next(t, c.FD)
		uffdtest.Next(t, f)
	})
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err == nil && !strings.Contains(string(stat), ") Z ") && !strings.Contains(string(stat), ") X ") {
			t.Errorf("process %d is left: %s", pid, stat)
		}
	}
}

func TestPattern(t *testing.T) {
	a, b := uffdtest.Pattern(1, 4096), uffdtest.Pattern(2, 4096)
	if len(a) != 4096 || uffdtest.Sum(a) == uffdtest.Sum(b) || uffdtest.Sum(a) != uffdtest.Sum(uffdtest.Pattern(1, 4096)) {
		t.Error("patterns are not what they should be")
	}
	for i, x := range a {
		if x == 0 {
			t.Fatalf("byte %d is zero", i)
		}
	}
}
