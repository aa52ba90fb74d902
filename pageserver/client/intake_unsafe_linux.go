package client

import (
	"io"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An intake is what comes over a connection, for its decoder. It belongs to the
// connection's reader, but for what anyone may call: expect and writeNow.
//
// Where the connection is a socket that does not block it is read and written
// without a word to Go's scheduler: a call that it is told of wakes the thread that looks after
// calls, which then wakes each 20 µs for a while.
type intake struct {
	c   Conn
	raw syscall.RawConn // nil: another kind of connection

	mu  sync.Mutex
	low int // guarded by mu: how much has to be there for the reader to be woken; 0: as the socket was made

	// Of one Read, whose part try is.
	try   func(fd uintptr) (done bool)
	p     []byte
	n     int
	errno unix.Errno
}

func newIntake(c Conn) *intake {
	in := &intake{c: c}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return in
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return in
	}
	blocks := true
	_ = raw.Control(func(fd uintptr) {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		blocks = err != nil || flags&unix.O_NONBLOCK == 0
	})
	if !blocks {
		in.raw, in.try = raw, in.readNow
	}
	return in
}

// Read is io.Reader's.
func (in *intake) Read(p []byte) (int, error) {
	if in.raw == nil || len(p) == 0 {
		return in.c.Read(p)
	}
	in.p = p
	err := in.raw.Read(in.try)
	in.p = nil
	switch {
	case err != nil:
		return 0, err
	case in.errno != 0:
		return 0, os.NewSyscallError("read", in.errno)
	case in.n == 0:
		return 0, io.EOF
	}
	return in.n, nil
}

// readNow reads what is there, and reports false if that is nothing.
func (in *intake) readNow(fd uintptr) (done bool) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&in.p[0])), uintptr(len(in.p)))
		if errno != unix.EINTR {
			in.n, in.errno = int(n), errno
			return errno != unix.EAGAIN
		}
	}
}

// writeNow writes what can be written at once, and says how much that is.
func (in *intake) writeNow(p []byte) (done int) {
	if in.raw == nil || len(p) == 0 {
		return 0
	}
	_ = in.raw.Control(func(fd uintptr) {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		if errno == 0 {
			done = int(n)
		}
	})
	return done
}

// expect says that at least n bytes are still to come, for which the reader need
// not be woken before they are all there. The kernel wakes it sooner where it has
// not the room, and at once where n is there already.
func (in *intake) expect(n int) {
	if in.raw == nil {
		return
	}
	n = max(n, 1)
	in.mu.Lock()
	defer in.mu.Unlock()
	if n == max(in.low, 1) {
		return
	}
	in.low = n
	value := int32(n)
	_ = in.raw.Control(func(fd uintptr) {
		_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT,
			uintptr(unsafe.Pointer(&value)), unsafe.Sizeof(value), 0)
	})
}
