package native

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A Run that fails has given nothing up that Kill needs: the process may live.
func TestRunThatFailsLeavesTheProcessToKill(t *testing.T) {
	program, err := unix.Mmap(-1, 0, page.Size, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	p := &Process{PID: 1, PIDFD: -1, tracer: proc.TracerHere(), program: program}
	failed := make(chan error)
	go func() { failed <- p.Run(func() {}) }()
	if err := <-failed; !errors.Is(err, proc.ErrWrongThread) {
		t.Errorf("Run on another thread = %v, want ErrWrongThread", err)
	}
	if err := p.tracer.Do(func() error { return nil }); err != nil {
		t.Errorf("the tracer is of no use after it: %v", err)
	}
	if err := unix.Munmap(program); err != nil {
		t.Errorf("the program is not there any more: %v", err)
	}
	p.Kill()
}
