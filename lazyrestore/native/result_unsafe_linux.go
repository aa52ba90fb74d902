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
	if p.timed {
		i = 2*i + 1
	}
	word := (*atomic.Int64)(unsafe.Pointer(&p.buf[t.off+(i+1)*proc.CallSize-8]))
	ret = word.Load()
	return ret, ret != proc.NotRun
}

// openGate lets the stub go on, that waits at the gate or will come to it.
func (p *program) openGate() error {
	word := (*atomic.Uint32)(unsafe.Pointer(&p.buf[gateOffset]))
	word.Store(1)
	if _, _, errno := unix.Syscall(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWake, 1); errno != 0 {
		return fmt.Errorf("wake the stub: %w", errno)
	}
	return nil
}

// told reports whether the process has told that it is built, for which it
// waits up to d.
func (p *program) told(d time.Duration) bool {
	word := (*atomic.Uint32)(unsafe.Pointer(&p.buf[builtOffset]))
	if word.Load() == 0 {
		most := unix.NsecToTimespec(int64(d))
		_, _, _ = unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWait, 0, uintptr(unsafe.Pointer(&most)), 0, 0)
	}
	return word.Load() != 0
}
