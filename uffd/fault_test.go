package uffd_test

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// allEvents are what a pager enables.
const allEvents = uffd.FeatureEventFork | uffd.FeatureEventRemap | uffd.FeatureEventRemove |
	uffd.FeatureEventUnmap | uffd.FeatureThreadID

// copyPage installs the pattern of a page and returns it.
func copyPage(t *testing.T, c *uffdtest.Child, f *uffd.FD, addr, seed uint64) []byte {
	t.Helper()
	p := uffdtest.Pattern(seed, c.PageSize)
	n, err := f.Copy(addr, p, 0)
	if err != nil || n != int64(len(p)) {
		t.Fatalf("Copy = %d, %v", n, err)
	}
	return p
}

// A fault tells its address, kind and thread, and Copy resolves it.
func TestCopyResolvesFault(t *testing.T) {
	uffdtest.Need(t, "uffd")
	for _, tt := range []struct {
		name string
		kind uffdtest.Kind
	}{{"anonymous", uffdtest.Anonymous}, {"shmem", uffdtest.Shmem}} {
		t.Run(tt.name, func(t *testing.T) {
			c := uffdtest.Start(t, uffdtest.Options{Kind: tt.kind, Features: uffd.FeatureThreadID})
			tid := c.Syscall(unix.SYS_GETTID).Wait(t)

			r := c.Store(c.Addr(3)+17, 99)
			msg := uffdtest.Next(t, c.FD)
			if msg.Event() != uffd.EventPagefault {
				t.Fatalf("event %v, want a fault", &msg)
			}
			want := uffd.Fault{Addr: c.Addr(3), Flags: uffd.FaultWrite, TID: uint32(tid)}
			if got := msg.Fault(); got != want {
				t.Errorf("fault %+v, want %+v", got, want)
			}
			if r.Ready(10 * time.Millisecond) {
				t.Error("the store was done before the page was there")
			}
			p := copyPage(t, c, c.FD, c.Addr(3), 3)
			r.Wait(t)
			p[17] = 99
			if got := c.Sum(c.Addr(3), uint64(c.PageSize)).Wait(t); got != uffdtest.Sum(p) {
				t.Error("the page has other bytes than were copied")
			}
		})
	}
}

func TestCopyErrors(t *testing.T) {
	uffdtest.Need(t, "uffd")
	c := uffdtest.Start(t, uffdtest.Options{Pages: 8})
	copyPage(t, c, c.FD, c.Addr(3), 3)
	pages := func(n int) []byte { return make([]byte, n*c.PageSize) }

	tests := []struct {
		name string
		dst  uint64
		src  []byte
		n    int64
		want unix.Errno
	}{
		{"present", c.Addr(3), pages(1), 0, unix.EEXIST},
		{"ends early", c.Addr(1), pages(4), 2 * int64(c.PageSize), unix.EAGAIN},
		{"not aligned", c.Addr(5) + 1, pages(1), 0, unix.EINVAL},
		{"part of a page", c.Addr(5), pages(1)[:100], 0, unix.EINVAL},
		{"empty", c.Addr(5), nil, 0, unix.EINVAL},
		{"not registered", c.Addr(8) + 1<<30, pages(1), 0, unix.ENOENT},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n, err := c.FD.Copy(tt.dst, tt.src, 0)
			if n != tt.n || !errors.Is(err, tt.want) {
				t.Errorf("Copy = %d, %v; want %d, %v", n, err, tt.n, tt.want)
			}
			var e *uffd.Error
			if !errors.As(err, &e) || e.Op != "copy" || e.Start != tt.dst || e.Length != uint64(len(tt.src)) {
				t.Errorf("the error does not say what was tried: %#v", e)
			}
		})
	}

	t.Run("process gone", func(t *testing.T) {
		c.Kill()
		if _, err := c.FD.Copy(c.Addr(5), pages(1), 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("Copy = %v, want ESRCH", err)
		}
	})
}
