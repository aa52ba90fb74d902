package pager

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

const (
	arenaAlign = 64
	arenaSmall = 256 << 10 // less is Go's
	arenaHuge  = 2 << 20   // as much is of huge pages: they take the kernel a third of the time
)

// arenaBytes is how much of an arena n bytes take.
func arenaBytes(n int) int { return (n + arenaAlign - 1) &^ (arenaAlign - 1) }

// An arena gives memory for tables that are as large as the image is. It is
// not Go's heap, so that it sets off no collection, and what is given is taken
// from the kernel at once: page by page that costs more than reading and
// checking what goes into it.
type arena struct {
	mu   sync.Mutex
	all  []byte
	used int // guarded by mu
	here int // guarded by mu: bytes that are taken from the kernel, or are about to be
}

// reserve has the arena give n bytes in all. It is called once, first.
func (a *arena) reserve(n int) {
	if n < arenaSmall {
		return
	}
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return
	}
	a.all = b
	if n >= arenaHuge {
		_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // or else small ones
	}
}

// alloc gives n zero bytes. It may be called from any goroutine.
func (a *arena) alloc(n int) []byte {
	b, fresh := a.take(n)
	if len(fresh) > 0 {
		// Without the lock: who waits for that does not wait for a thread that gives way
		// to others, and may have no processor for long.
		_ = unix.Madvise(fresh, unix.MADV_POPULATE_WRITE) // since Linux 5.14; without it they come one by one
	}
	return b
}

// take gives n bytes, and what of the arena nobody has taken from the kernel yet.
func (a *arena) take(n int) (b, fresh []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	end := a.used + arenaBytes(n)
	if end > len(a.all) {
		return make([]byte, n), nil
	}
	b = a.all[a.used : a.used+n : a.used+n]
	a.used = end
	if end > a.here {
		to := min((end+page.Size-1)&^(page.Size-1), len(a.all))
		fresh = a.all[a.here:to]
		a.here = to
	}
	return b, fresh
}

// free gives everything back.
func (a *arena) free() {
	if a.all != nil {
		_ = unix.Munmap(a.all)
		a.all = nil
	}
}
