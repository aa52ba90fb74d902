package native

import (
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// result is what step i of a placed table returned, if it has returned. The
// process writes it while we look.
func (p *program) result(t *table, i int) (ret int64, done bool) {
	if i >= t.placed {
		return proc.NotRun, false
	}
	word := (*atomic.Int64)(unsafe.Pointer(&p.buf[p.entry(t, i)+proc.CallSize-8]))
	ret = word.Load()
	return ret, ret != proc.NotRun
}

// redirect has the jump at off lead to a table at addr. The process may be reading
// it.
func (p *program) redirect(off int, addr uint64) {
	(*atomic.Uint64)(unsafe.Pointer(&p.buf[off+proc.JumpTable])).Store(addr)
}

// open lets the process go on, that waits at the word at off in the first page
// or will come to it.
func (p *program) open(off int) error { return p.set(off, 1) }

// set is open for one that waits as long as the word is less than v.
func (p *program) set(off int, v uint32) error {
	word := (*atomic.Uint32)(unsafe.Pointer(&p.buf[off]))
	word.Store(v)
	if _, _, errno := unix.Syscall(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWake, 1); errno != 0 {
		return fmt.Errorf("wake the process: %w", errno)
	}
	return nil
}

// told reports whether the process has set the word at off in the first page,
// for which it waits up to d.
func (p *program) told(off int, d time.Duration) bool {
	word := (*atomic.Uint32)(unsafe.Pointer(&p.buf[off]))
	if word.Load() == 0 {
		most := unix.NsecToTimespec(int64(d))
		_, _, _ = unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWait, 0, uintptr(unsafe.Pointer(&most)), 0, 0)
	}
	return word.Load() != 0
}
