//go:build amd64

package main

import (
	"errors"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// signalPipe is the end of the pipe that onSignal writes to.
var signalPipe int32

// signalCode is where onSignal and signalReturn are.
//
//go:noescape
func signalCode() (handler, restorer uintptr)

// A sigaction is the kernel's struct of that name (asm/signal.h).
type sigaction struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

// The flags of a sigaction that unix does not have.
const (
	saOnStack  = 0x08000000
	saRestart  = 0x10000000
	saRestorer = 0x04000000
)

// listen has signals come over c from now on. Package os/signal does the same,
// but makes two threads agree on each signal in turn, which takes a processor
// half a millisecond while a process is being built. Behind stop none comes any
// more, and nothing else becomes of them.
func listen(c chan<- os.Signal, signals []os.Signal) (stop func(), err error) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	atomic.StoreInt32(&signalPipe, int32(pipe[1]))
	handler, restorer := signalCode()
	act := sigaction{handler, saOnStack | saRestart | saRestorer, restorer, ^uint64(0)}
	for _, s := range signals {
		sig, ok := s.(unix.Signal)
		if !ok {
			return nil, errors.New("not a signal of this system: " + s.String())
		}
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&act)), 0, unsafe.Sizeof(act.mask), 0, 0)
		if errno != 0 {
			return nil, os.NewSyscallError("rt_sigaction", errno)
		}
	}
	from := os.NewFile(uintptr(pipe[0]), "signals")
	go func() {
		var got [1]byte
		for {
			if n, err := from.Read(got[:]); err != nil || n == 0 {
				return
			}
			select {
			case c <- unix.Signal(got[0]):
			default: // as os/signal does
			}
		}
	}()
	return func() {
		// The other end stays open: a thread may be about to write to it.
		atomic.StoreInt32(&signalPipe, -1)
		from.Close()
	}, nil
}
