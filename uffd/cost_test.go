package uffd_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// descriptors counts what this process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// Nothing here leaves a descriptor behind, whether it works or not.
func TestNoDescriptorLeaks(t *testing.T) {
	uffdtest.Need(t, "uffd")
	cycle := func() {
		uffd.Probe()
		f, err := uffd.Open(uffd.CloseOnExec | uffd.NonBlock)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Enable(1 << 60); !errors.Is(err, errors.ErrUnsupported) {
			t.Fatalf("Enable = %v", err)
		}
		if _, err := f.Enable(uffd.FeatureEventFork); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := uffd.Open(1 << 30); !errors.Is(err, unix.EINVAL) {
			t.Fatalf("Open with an unknown flag = %v", err)
		}
	}
	cycle()
	before := descriptors(t)
	for range 10 {
		cycle()
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

// An FD that is forgotten stays open: see TestCloseOfTheLastReference.
func TestNoFinalizer(t *testing.T) {
	uffdtest.Need(t, "uffd")
	fd := func() int {
		f, err := uffd.Open(uffd.CloseOnExec)
		if err != nil {
			t.Fatal(err)
		}
		return f.Fd()
	}()
	runtime.GC()
	runtime.GC()
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		t.Fatalf("the garbage collector closed a userfaultfd: %v", err)
	}
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
}

// The ways that a fault takes allocate nothing.
func TestAllocations(t *testing.T) {
	uffdtest.Need(t, "uffd")
	const runs = 50
	c := uffdtest.Start(t, uffdtest.Options{Pages: 5 * (runs + 2)})
	src := uffdtest.Pattern(1, c.PageSize)
	size := uint64(c.PageSize)
	var buf [4]uffd.Msg
	next := 0
	page := func() uint64 { next++; return c.Addr(next - 1) }

	for name, f := range map[string]func() error{
		"Copy":    func() error { _, err := c.FD.Copy(page(), src, 0); return err },
		"CopyNow": func() error { _, err := c.FD.CopyNow(page(), src, 0); return err },
		"Zero":    func() error { _, err := c.FD.Zero(page(), size, 0); return err },
		"ZeroNow": func() error { _, err := c.FD.ZeroNow(page(), size, 0); return err },
		"Wake":    func() error { return c.FD.Wake(c.Start, c.Length) },
		"Read": func() error {
			if _, err := c.FD.Read(buf[:]); err != unix.EAGAIN { //nolint:errorlint // it is bare
				return fmt.Errorf("Read = %w, want EAGAIN", err)
			}
			return nil
		},
	} {
		var err error
		n := testing.AllocsPerRun(runs, func() {
			if e := f(); e != nil {
				err = e
			}
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

// A source that looks like a local variable is made on the heap, once a call,
// for a stack may move while the kernel has its address.
func TestSourceEscapes(t *testing.T) {
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{Pages: 1})
	// Too short to be installed, so that it can be tried often.
	const short = 64
	if n := testing.AllocsPerRun(10, func() {
		var src [short]byte
		if _, err := c.FD.Copy(c.Start, src[:], 0); !errors.Is(err, unix.EINVAL) {
			t.Errorf("Copy = %v, want EINVAL", err)
		}
	}); n < 2 { // the error is one
		t.Errorf("Copy: the source is on the stack (%v allocations)", n)
	}
	if n := testing.AllocsPerRun(10, func() {
		var src [short]byte
		if _, err := c.FD.CopyNow(c.Start, src[:], 0); !errors.Is(err, unix.EINVAL) {
			t.Errorf("CopyNow = %v, want EINVAL", err)
		}
	}); n < 2 {
		t.Errorf("CopyNow: the source is on the stack (%v allocations)", n)
	}
}

// BenchmarkCopy is the ceiling of a fill on one core, by the size of a copy.
func BenchmarkCopy(b *testing.B) {
	uffdtest.Need(b, "uffd")
	const pages = 1 << 14
	c := uffdtest.Start(b, uffdtest.Options{Pages: pages})
	src := uffdtest.Pattern(1, 256*c.PageSize)
	ways := []struct {
		name string
		copy func(uint64, []byte, uffd.CopyMode) (int64, error)
	}{{"Copy", c.FD.Copy}, {"CopyNow", c.FD.CopyNow}}
	for _, n := range []int{1, 16, 64, 256} {
		for _, way := range ways {
			b.Run(fmt.Sprintf("pages=%d/way=%s", n, way.name), func(b *testing.B) {
				c.Madvise(c.Start, c.Length, unix.MADV_DONTNEED).Wait(b)
				b.SetBytes(int64(n * c.PageSize))
				at := 0
				for b.Loop() {
					if at+n > pages {
						b.StopTimer()
						c.Madvise(c.Start, c.Length, unix.MADV_DONTNEED).Wait(b)
						at = 0
						b.StartTimer()
					}
					if _, err := way.copy(c.Addr(at), src[:n*c.PageSize], 0); err != nil {
						b.Fatal(err)
					}
					at += n
				}
			})
		}
	}
}

// BenchmarkRead is one turn of a thread that spins.
func BenchmarkRead(b *testing.B) {
	uffdtest.Need(b, "uffd")
	c := uffdtest.Start(b, uffdtest.Options{})
	buf := make([]uffd.Msg, 8)
	for b.Loop() {
		if _, err := c.FD.Read(buf); !errors.Is(err, unix.EAGAIN) {
			b.Fatal(err)
		}
	}
}
