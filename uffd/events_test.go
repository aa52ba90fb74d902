package uffd_test

import (
	"errors"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// serve answers the next fault of f with the pattern of seed and checks where
// it was.
func serve(t *testing.T, c *uffdtest.Child, f *uffd.FD, addr, seed uint64) []byte {
	t.Helper()
	msg := uffdtest.Next(t, f)
	if msg.Event() != uffd.EventPagefault || msg.Fault().Addr != addr {
		t.Fatalf("message: %v; want a fault at %#x", &msg, addr)
	}
	return copyPage(t, c, f, addr, seed)
}

// A forked process has a userfaultfd of its own, with what its parent's had.
func TestEventFork(t *testing.T) {
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{Features: allEvents})
	before := copyPage(t, c, c.FD, c.Addr(0), 100)

	forked, pid := c.Fork(t)
	msg := uffdtest.Next(t, c.FD)
	if msg.Event() != uffd.EventFork {
		t.Fatalf("message: %v; want a fork", &msg)
	}
	f := uffd.FromFD(msg.Fork())
	defer func() { _ = f.Close() }()
	pid.Wait(t)

	size := uint64(c.PageSize)
	if got := forked.Sum(c.Addr(0), size).Wait(t); got != uffdtest.Sum(before) {
		t.Error("the forked process has another page 0")
	}
	theirs, ours := forked.Sum(c.Addr(1), size), c.Sum(c.Addr(1), size)
	p := serve(t, c, f, c.Addr(1), 1)
	q := serve(t, c, c.FD, c.Addr(1), 2)
	if theirs.Wait(t) != uffdtest.Sum(p) || ours.Wait(t) != uffdtest.Sum(q) {
		t.Error("a page went to the wrong process")
	}
	if _, err := forked.Exit(0).Result(); !uffdtest.Gone(err) {
		t.Errorf("after exit: %v", err)
	}
}

func TestEventRemap(t *testing.T) {
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{Pages: 8, Features: allEvents})
	size := uint64(c.PageSize)

	// Page 6 is in the way of growing in place, which would be no event.
	moved := c.Mremap(c.Addr(2), 4*size, 8*size, unix.MREMAP_MAYMOVE, 0)
	msg := uffdtest.Next(t, c.FD)
	from, to, length := msg.Remap()
	if msg.Event() != uffd.EventRemap || from != c.Addr(2) || length != 4*size {
		t.Fatalf("message: %v; want 4 pages from %#x", &msg, c.Addr(2))
	}
	// Some kernels report the old place as unmapped besides.
	for !moved.Ready(time.Millisecond) {
		var buf [1]uffd.Msg
		if n, _ := c.FD.Read(buf[:]); n > 0 && buf[0].Event() != uffd.EventUnmap {
			t.Fatalf("message: %v; want an unmap", &buf[0])
		}
	}
	if got := moved.Wait(t); got != to {
		t.Errorf("mremap gave %#x, the event %#x", got, to)
	}
	r := c.Sum(to+size, size)
	if p := serve(t, c, c.FD, to+size, 5); r.Wait(t) != uffdtest.Sum(p) {
		t.Error("other bytes at the new place")
	}
	if _, err := c.FD.Copy(from, make([]byte, size), 0); !errors.Is(err, unix.ENOENT) {
		t.Errorf("Copy to the old place = %v, want ENOENT", err)
	}
}

// Remove and unmap wait for their read, and then the pages are missing again,
// or gone.
func TestEventRemoveAndUnmap(t *testing.T) {
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{Pages: 8, Features: allEvents})
	size := uint64(c.PageSize)
	copyPage(t, c, c.FD, c.Addr(2), 2)

	tests := []struct {
		name  string
		event uffd.EventType
		do    func() *uffdtest.Reply
	}{
		{"remove", uffd.EventRemove, func() *uffdtest.Reply { return c.Madvise(c.Addr(2), 2*size, unix.MADV_DONTNEED) }},
		{"unmap", uffd.EventUnmap, func() *uffdtest.Reply { return c.Munmap(c.Addr(2), 2*size) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := tt.do()
			msg := uffdtest.Next(t, c.FD)
			start, end := msg.Range()
			if msg.Event() != tt.event || start != c.Addr(2) || end != c.Addr(4) {
				t.Fatalf("message: %v; want %v of pages 2 and 3", &msg, tt.event)
			}
			r.Wait(t)
			if tt.event == uffd.EventRemove {
				got := c.Sum(c.Addr(2), size)
				if p := serve(t, c, c.FD, c.Addr(2), 22); got.Wait(t) != uffdtest.Sum(p) {
					t.Error("other bytes after the removal")
				}
				return
			}
			if _, err := c.FD.Copy(c.Addr(2), make([]byte, size), 0); !errors.Is(err, unix.ENOENT) {
				t.Errorf("Copy = %v, want ENOENT", err)
			}
		})
	}
}

// Between an event and its read, the address space is changing.
func TestCopyWhileChanging(t *testing.T) {
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{Features: allEvents})
	r := c.Madvise(c.Addr(0), uint64(c.PageSize), unix.MADV_DONTNEED)
	uffdtest.WaitMessage(t, c.FD)
	for name, fill := range map[string]func() (int64, error){
		"Copy":    func() (int64, error) { return c.FD.Copy(c.Addr(1), make([]byte, c.PageSize), 0) },
		"CopyNow": func() (int64, error) { return c.FD.CopyNow(c.Addr(1), make([]byte, c.PageSize), 0) },
		"Zero":    func() (int64, error) { return c.FD.Zero(c.Addr(1), uint64(c.PageSize), 0) },
		"ZeroNow": func() (int64, error) { return c.FD.ZeroNow(c.Addr(1), uint64(c.PageSize), 0) },
	} {
		if n, err := fill(); n != 0 || !errors.Is(err, unix.EAGAIN) {
			t.Errorf("%s = %d, %v; want 0, EAGAIN", name, n, err)
		}
	}
	if msg := uffdtest.Next(t, c.FD); msg.Event() != uffd.EventRemove {
		t.Fatalf("message: %v; want a remove", &msg)
	}
	r.Wait(t)
	copyPage(t, c, c.FD, c.Addr(1), 1)
}

// A fault that somebody has read, and not resolved, is raised again by Wake:
// what a successor relies on. Meanwhile, others come before events.
func TestWakeRaisesAgain(t *testing.T) {
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{Threads: 2, Features: uffd.FeatureThreadID})
	first := c.Load(c.Addr(1))
	uffdtest.Next(t, c.FD)
	second := c.Threads[1].Load(c.Addr(2))
	uffdtest.Next(t, c.FD)
	uffdtest.None(t, c.FD, 10*time.Millisecond)

	if err := c.FD.Wake(c.Start, c.Length); err != nil {
		t.Fatal(err)
	}
	seen := map[uint64]bool{}
	for range 2 {
		msg := uffdtest.Next(t, c.FD)
		seen[msg.Fault().Addr] = true
	}
	if !seen[c.Addr(1)] || !seen[c.Addr(2)] {
		t.Errorf("faults at %v after Wake", seen)
	}
	p := uffdtest.Pattern(1, 2*c.PageSize)
	if _, err := c.FD.Copy(c.Addr(1), p, uffd.DontWake); err != nil {
		t.Fatal(err)
	}
	if first.Ready(10*time.Millisecond) || second.Ready(0) {
		t.Error("DontWake woke a thread")
	}
	if err := c.FD.Wake(c.Addr(1), uint64(len(p))); err != nil {
		t.Fatal(err)
	}
	if byte(first.Wait(t)) != p[0] || byte(second.Wait(t)) != p[c.PageSize] {
		t.Error("a thread loaded another byte")
	}
}

// One read takes all that is there, faults of several threads among it.
func TestReadBatch(t *testing.T) {
	uffdtest.Need(t, "uffd")
	const threads = 3
	c := uffdtest.Start(t, uffdtest.Options{Threads: threads, Blocking: true})
	var replies []*uffdtest.Reply
	for i, th := range c.Threads {
		replies = append(replies, th.Load(c.Addr(i)))
	}
	var buf [8]uffd.Msg
	seen := map[uint64]bool{}
	for len(seen) < threads {
		n, err := c.FD.Read(buf[:])
		if err != nil || n < 1 {
			t.Fatalf("Read = %d, %v", n, err)
		}
		for i := range buf[:n] {
			seen[buf[i].Fault().Addr] = true
		}
	}
	if _, err := c.FD.Zero(c.Start, c.Length, 0); err != nil {
		t.Fatal(err)
	}
	for _, r := range replies {
		if got := r.Wait(t); got != 0 {
			t.Errorf("a page of zeros starts with %d", got)
		}
	}
}

// The kernel's own accesses fault like any other.
func TestFaultInKernel(t *testing.T) {
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{})
	r := c.Madvise(c.Addr(1), uint64(c.PageSize), unix.MADV_POPULATE_READ)
	serve(t, c, c.FD, c.Addr(1), 1)
	r.Wait(t)
}

// wantSIGBUS checks that the child dies of SIGBUS in the request.
func wantSIGBUS(t *testing.T, c *uffdtest.Child, r *uffdtest.Reply) {
	t.Helper()
	if _, err := r.Result(); !uffdtest.Gone(err) {
		t.Fatalf("the child lives: %v", err)
	}
	status, ok := c.WaitExit(t).Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != unix.SIGBUS {
		t.Errorf("the child ended with %v, want SIGBUS", status)
	}
}

func TestPoison(t *testing.T) {
	uffdtest.Need(t, "uffd", "POISON")
	c := uffdtest.Start(t, uffdtest.Options{})
	r := c.Load(c.Addr(2))
	uffdtest.Next(t, c.FD)
	if n, err := c.FD.Poison(c.Addr(2), uint64(c.PageSize), 0); err != nil || n != int64(c.PageSize) {
		t.Fatalf("Poison = %d, %v", n, err)
	}
	wantSIGBUS(t, c, r)
}

func TestFeatureSIGBUS(t *testing.T) {
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{Features: uffd.FeatureSIGBUS})
	wantSIGBUS(t, c, c.Load(c.Addr(2)))
}

func TestExactAddress(t *testing.T) {
	uffdtest.Need(t, "uffd", "EXACT_ADDRESS")
	c := uffdtest.Start(t, uffdtest.Options{Features: uffd.FeatureExactAddress})
	r := c.Load(c.Addr(2) + 123)
	msg := uffdtest.Next(t, c.FD)
	if got := msg.Fault().Addr; got != c.Addr(2)+123 {
		t.Errorf("fault at %#x, want %#x", got, c.Addr(2)+123)
	}
	copyPage(t, c, c.FD, c.Addr(2), 2)
	r.Wait(t)
}

// Closing the last reference makes the memory zeros without a word, and a
// second one prevents it: why FD has no finalizer.
func TestCloseOfTheLastReference(t *testing.T) {
	uffdtest.Need(t, "uffd")
	for _, keep := range []bool{false, true} {
		c := uffdtest.Start(t, uffdtest.Options{KeepFD: keep})
		r := c.Load(c.Addr(0))
		uffdtest.Next(t, c.FD)
		if err := c.FD.Close(); err != nil {
			t.Fatal(err)
		}
		if keep {
			if r.Ready(50 * time.Millisecond) {
				t.Error("the child went on, though it keeps its userfaultfd")
			}
		} else if got := r.Wait(t); got != 0 {
			t.Errorf("the child loaded %d", got)
		}
	}
}

// exec ends the memory, and the descriptor's other operations with it.
func TestExec(t *testing.T) {
	uffdtest.Need(t, "uffd")
	sh, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	c := uffdtest.Start(t, uffdtest.Options{Features: allEvents})
	path := append([]byte(sh), 0)
	page := make([]byte, c.PageSize)
	copy(page, path)
	if _, err := c.FD.Copy(c.Addr(0), page, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.FD.Zero(c.Addr(1), uint64(c.PageSize), 0); err != nil {
		t.Fatal(err)
	}
	c.Syscall(unix.SYS_EXECVE, c.Addr(0), c.Addr(1), c.Addr(1))
	c.WaitExit(t)
	if _, err := c.FD.Copy(c.Addr(2), page, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("Copy = %v, want ESRCH", err)
	}
}
