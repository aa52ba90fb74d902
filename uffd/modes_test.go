package uffd_test

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

func TestZero(t *testing.T) {
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{Pages: 4})
	size := uint64(c.PageSize)
	copyPage(t, c, c.FD, c.Addr(2), 2)
	n, err := c.FD.Zero(c.Start, c.Length, 0)
	if n != int64(2*size) || !errors.Is(err, unix.EAGAIN) {
		t.Errorf("Zero = %d, %v; want two pages and EAGAIN", n, err)
	}
	if _, err := c.FD.Zero(c.Addr(2), size, 0); !errors.Is(err, unix.EEXIST) {
		t.Errorf("Zero = %v, want EEXIST", err)
	}
	if got := c.Sum(c.Start, 2*size).Wait(t); got != uffdtest.Sum(make([]byte, 2*size)) {
		t.Error("the pages are not zero")
	}
}

// Pages of zeros take memory where that is shared.
func TestZeroTakesMemory(t *testing.T) {
	uffdtest.Need(t, "uffd", "MISSING_SHMEM")
	const size = 16 << 12
	fd, err := unix.MemfdCreate("zeros", unix.MFD_CLOEXEC)
	if err == nil {
		defer func() { _ = unix.Close(fd) }()
		err = unix.Ftruncate(fd, size)
	}
	if err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mem) }()
	f, err := uffd.Open(uffd.CloseOnExec)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Enable(uffd.FeatureMissingShmem); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Register(address(mem), size, uffd.ModeMissing); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Zero(address(mem), size, 0); err != nil || n != size {
		t.Fatalf("Zero = %d, %v", n, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Blocks*512 != size {
		t.Errorf("shared memory has %d bytes for %d of zeros: %v", st.Blocks*512, size, err)
	}
}

func TestUnregister(t *testing.T) {
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{Pages: 4})
	size := uint64(c.PageSize)
	r := c.Load(c.Addr(1))
	uffdtest.Next(t, c.FD)
	if err := c.FD.Unregister(c.Start, 2*size); err != nil {
		t.Fatal(err)
	}
	if got := r.Wait(t); got != 0 {
		t.Errorf("loaded %d from ordinary memory", got)
	}
	r = c.Load(c.Addr(3))
	serve(t, c, c.FD, c.Addr(3), 3)
	r.Wait(t)
	if err := c.FD.Unregister(c.Start+1, size); !errors.Is(err, unix.EINVAL) {
		t.Errorf("Unregister of half a page = %v, want EINVAL", err)
	}
}

func TestRegisterErrors(t *testing.T) {
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{Unregistered: true})
	size := uint64(c.PageSize)
	droppable := c.Mmap(0, size, unix.PROT_READ|unix.PROT_WRITE, 0x08 /* MAP_DROPPABLE */)
	tests := []struct {
		name          string
		start, length uint64
		mode          uffd.Mode
		want          unix.Errno
	}{
		{"not aligned", c.Start + 1, size, uffd.ModeMissing, unix.EINVAL},
		{"empty", c.Start, 0, uffd.ModeMissing, unix.EINVAL},
		{"no mode", c.Start, size, 0, unix.EINVAL},
		{"nothing mapped", 1 << 20, size, uffd.ModeMissing, unix.EINVAL},
		{"minor, but anonymous", c.Start, size, uffd.ModeMinor, unix.EINVAL},
	}
	if addr, err := droppable.Result(); err == nil {
		tests = append(tests, struct {
			name          string
			start, length uint64
			mode          uffd.Mode
			want          unix.Errno
		}{"droppable", addr, size, uffd.ModeMissing, unix.EINVAL})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := c.FD.Register(tt.start, tt.length, tt.mode); !errors.Is(err, tt.want) {
				t.Errorf("Register = %v, want %v", err, tt.want)
			}
		})
	}
	ioctls, err := c.FD.Register(c.Start, c.Length, uffd.ModeMissing)
	if err != nil || !ioctls.Has(uffd.IoctlCopy|uffd.IoctlZero|uffd.IoctlWake) {
		t.Errorf("Register = %#x, %v", uint64(ioctls), err)
	}
}

// Minor faults: the page is in the page cache, Continue maps it.
func TestContinue(t *testing.T) {
	uffdtest.Need(t, "uffd", "MINOR_SHMEM")
	c := uffdtest.Start(t, uffdtest.Options{
		Kind: uffdtest.Shmem, Unregistered: true, Features: uffd.FeatureMinorShmem,
	})
	size := uint64(c.PageSize)
	c.Store(c.Addr(1), 77).Wait(t)
	c.Madvise(c.Start, c.Length, unix.MADV_DONTNEED).Wait(t) // the page stays in the cache
	if _, err := c.FD.Register(c.Start, c.Length, uffd.ModeMinor); err != nil {
		t.Fatal(err)
	}
	r := c.Load(c.Addr(1))
	msg := uffdtest.Next(t, c.FD)
	if got := msg.Fault(); got.Addr != c.Addr(1) || got.Flags != uffd.FaultMinor {
		t.Fatalf("message: %v; want a minor fault of page 1", &msg)
	}
	if n, err := c.FD.Continue(c.Addr(1), size, 0); err != nil || n != int64(size) {
		t.Fatalf("Continue = %d, %v", n, err)
	}
	if got := r.Wait(t); got != 77 {
		t.Errorf("loaded %d, want 77", got)
	}
	if _, err := c.FD.Continue(c.Addr(1), size, 0); !errors.Is(err, unix.EEXIST) {
		t.Errorf("second Continue = %v, want EEXIST", err)
	}
	if _, err := c.FD.Continue(c.Addr(2), size, 0); !errors.Is(err, unix.EFAULT) {
		t.Errorf("Continue of what is in no cache = %v, want EFAULT", err)
	}
}

func TestWriteProtect(t *testing.T) {
	uffdtest.Need(t, "uffd", "PAGEFAULT_FLAG_WP")
	c := uffdtest.Start(t, uffdtest.Options{
		Mode: uffd.ModeMissing | uffd.ModeWriteProtect, Features: uffd.FeatureWriteProtect,
	})
	size := uint64(c.PageSize)
	p := uffdtest.Pattern(1, c.PageSize)
	if _, err := c.FD.Copy(c.Addr(1), p, uffd.WriteProtected); err != nil {
		t.Fatal(err)
	}
	copyPage(t, c, c.FD, c.Addr(2), 2)
	if err := c.FD.WriteProtect(c.Addr(2), size, uffd.Protect); err != nil {
		t.Fatal(err)
	}
	for _, page := range []int{1, 2} {
		c.Load(c.Addr(page)).Wait(t) // reading is allowed
		r := c.Store(c.Addr(page), 5)
		msg := uffdtest.Next(t, c.FD)
		want := uffd.Fault{Addr: c.Addr(page), Flags: uffd.FaultWrite | uffd.FaultWriteProtect}
		if got := msg.Fault(); got != want {
			t.Fatalf("fault %+v, want %+v", got, want)
		}
		if err := c.FD.WriteProtect(c.Addr(page), size, uffd.UnprotectDontWake); err != nil {
			t.Fatal(err)
		}
		if r.Ready(10 * time.Millisecond) {
			t.Error("UnprotectDontWake woke the thread")
		}
		if err := c.FD.WriteProtect(c.Addr(page), size, 0); err != nil {
			t.Fatal(err)
		}
		r.Wait(t)
	}
	if err := c.FD.WriteProtect(c.Addr(1), size, uffd.Protect|uffd.UnprotectDontWake); !errors.Is(err, unix.EINVAL) {
		t.Errorf("WriteProtect = %v, want EINVAL", err)
	}
}

// With WP_ASYNC the kernel lifts the protection itself: no message.
func TestWriteProtectAsync(t *testing.T) {
	uffdtest.Need(t, "uffd", "WP_ASYNC")
	c := uffdtest.Start(t, uffdtest.Options{
		Mode:     uffd.ModeMissing | uffd.ModeWriteProtect,
		Features: uffd.FeatureWriteProtectAsync | uffd.FeatureWriteProtectUnpopulated | uffd.FeatureWriteProtect,
	})
	copyPage(t, c, c.FD, c.Addr(1), 1)
	if err := c.FD.WriteProtect(c.Start, c.Length, uffd.Protect); err != nil {
		t.Fatal(err)
	}
	c.Store(c.Addr(1), 5).Wait(t)
	uffdtest.None(t, c.FD, 0)
}

// Move works in the caller's own memory, which no goroutine touches before it
// is there.
func TestMove(t *testing.T) {
	uffdtest.Need(t, "uffd", "MOVE")
	size := uint64(unix.Getpagesize())
	f, err := uffd.Open(uffd.CloseOnExec | uffd.NonBlock)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Enable(uffd.FeatureMove); err != nil {
		t.Fatal(err)
	}
	src, srcAt := anonymous(t, 4*size)
	dst, dstAt := anonymous(t, 4*size)
	if _, err := f.Register(dstAt, 4*size, uffd.ModeMissing); err != nil {
		t.Fatal(err)
	}
	src[0] = 42
	if n, err := f.Move(dstAt, srcAt, size, 0); err != nil || n != int64(size) {
		t.Fatalf("Move = %d, %v", n, err)
	}
	if dst[0] != 42 || src[0] != 0 {
		t.Errorf("moved %d, %d left behind", dst[0], src[0])
	}
	if _, err := f.Move(dstAt, srcAt, size, 0); !errors.Is(err, unix.EEXIST) {
		t.Errorf("Move onto a page = %v, want EEXIST", err)
	}
	if _, err := f.Move(dstAt+size, srcAt+2*size, size, 0); !errors.Is(err, unix.ENOENT) {
		t.Errorf("Move of a hole = %v, want ENOENT", err)
	}
	if _, err := f.Move(dstAt+size, srcAt+2*size, size, uffd.MoveAllowSourceHoles); err != nil {
		t.Errorf("Move of a hole = %v", err)
	}
}

// Huge pages are installed whole.
func TestHugetlb(t *testing.T) {
	uffdtest.Need(t, "uffd", "hugetlb")
	for _, kind := range []uffdtest.Kind{uffdtest.Hugetlb, uffdtest.HugetlbShared} {
		c := uffdtest.Start(t, uffdtest.Options{Kind: kind, Pages: 2, Features: uffd.FeatureMissingHugetlbfs})
		r := c.Sum(c.Addr(1), uint64(c.PageSize))
		p := serve(t, c, c.FD, c.Addr(1), 1)
		if r.Wait(t) != uffdtest.Sum(p) {
			t.Error("other bytes in the huge page")
		}
		if _, err := c.FD.Copy(c.Addr(0), p[:4096], 0); !errors.Is(err, unix.EINVAL) {
			t.Errorf("Copy of 4096 bytes = %v, want EINVAL", err)
		}
		if _, err := c.FD.Zero(c.Addr(0), uint64(c.PageSize), 0); !errors.Is(err, unix.EINVAL) {
			t.Errorf("Zero = %v, want EINVAL", err)
		}
		c.Kill()
	}
}

// Protection does not keep pages from being installed.
func TestCopyIntoProtected(t *testing.T) {
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{Pages: 1})
	c.Mprotect(c.Start, c.Length, unix.PROT_NONE).Wait(t)
	p := copyPage(t, c, c.FD, c.Start, 1)
	c.Mprotect(c.Start, c.Length, unix.PROT_READ).Wait(t)
	if c.Sum(c.Start, c.Length).Wait(t) != uffdtest.Sum(p) {
		t.Error("other bytes in the page")
	}
}
