package lazypages

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd"
)

// SocketName is the name of the socket in the work directory.
const SocketName = "lazy-pages.socket"

// finished is the word that ends the setting-up (LAZY_PAGES_RESTORE_FINISHED).
const finished = 0x52535446

// boundName is the socket's name while nobody can connect to it.
const boundName = SocketName + ".new"

// bind makes the socket that criu restore connects to, which comes to its name
// with listen: who sees it there may connect to it.
func bind(dir string) (fd int, err error) {
	// By way of a descriptor: the path of a socket has at most 107 bytes.
	d, err := os.Open(dir)
	if err != nil {
		return -1, err
	}
	defer d.Close()
	for _, name := range []string{SocketName, boundName} {
		if err := unix.Unlinkat(int(d.Fd()), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return -1, &fs.PathError{Op: "remove", Path: filepath.Join(dir, name), Err: err}
		}
	}
	short := filepath.Join("/proc/self/fd", strconv.Itoa(int(d.Fd())), boundName)
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: short}); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("bind %s: %w", filepath.Join(dir, boundName), err)
	}
	return fd, nil
}

// listen has the socket that bind made connected to. One connection may come before
// accept: whoever is next in the queue would build its tasks, and let them run, with
// nobody to take their memory.
func listen(fd int, dir string) error {
	if err := unix.Listen(fd, 0); err != nil { // one in the queue, and others wait to be
		return os.NewSyscallError("listen", err)
	}
	return os.Rename(filepath.Join(dir, boundName), filepath.Join(dir, SocketName))
}

// listens reports whether connections can be made to a socket, or could be.
func listens(fd int) bool {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && n != 0
}

// nameOf is the path that a unix socket was bound to, which connections to it have too.
func nameOf(fd int) (string, error) {
	addr, err := unix.Getsockname(fd)
	if err != nil {
		return "", os.NewSyscallError("getsockname", err)
	}
	at, ok := addr.(*unix.SockaddrUnix)
	if !ok || at.Name == "" {
		return "", errors.New("not a unix socket with a name")
	}
	return at.Name, nil
}

// A waker waits for what comes over descriptors, and for the end of a context.
type waker struct {
	ctx  context.Context
	f    *os.File // an eventfd, which tells of that end
	fd   int      // of f
	stop func() bool
}

func newWaker(ctx context.Context) (*waker, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC) // blocking, or Go would have it polled
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	f := os.NewFile(uintptr(fd), "wake")
	stop := context.AfterFunc(ctx, func() { _, _ = f.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	return &waker{ctx, f, fd, stop}, nil
}

func (w *waker) close() {
	w.stop()
	w.f.Close()
}

// wait waits until fd has something to read, or the context is done.
func (w *waker) wait(fd int) error {
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(w.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
		if w.ctx.Err() != nil {
			return context.Cause(w.ctx)
		}
		if fds[0].Revents != 0 {
			return nil
		}
	}
}

// accept waits for the connection of criu restore. Who connects after it is refused, also
// once this daemon was killed and its keeper has the listener.
func (w *waker) accept(listener int) (int, error) {
	if err := w.wait(listener); err != nil {
		return -1, err
	}
	return acceptLast(listener)
}

// acceptLast has nobody connect any more, and takes the connection of who has; EAGAIN if nobody has.
func acceptLast(listener int) (int, error) {
	// What is in the queue stays there. Taking it out lets in who waits for its place, and
	// sees first that there is none any more.
	if err := unix.Shutdown(listener, unix.SHUT_RDWR); err != nil {
		return -1, os.NewSyscallError("shutdown", err)
	}
	fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		return -1, os.NewSyscallError("accept", err)
	}
	return fd, nil
}

// peek waits until len(b) bytes can be read from fd, and shows them without
// taking them: what is taken cannot be had again by a successor.
func (w *waker) peek(fd int, b []byte) error {
	for {
		if err := w.wait(fd); err != nil {
			return err
		}
		n, _, err := unix.Recvfrom(fd, b, unix.MSG_PEEK)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("recv", err)
		case n == 0:
			return io.EOF
		case n == len(b):
			return nil
		case closed(fd):
			return io.ErrUnexpectedEOF
		default:
			// The rest is on its way; poll does not tell when it is there.
			if err := w.pause(); err != nil {
				return err
			}
		}
	}
}

// peekPid waits for the pid of the next task.
func (w *waker) peekPid(fd int) (int, error) {
	var b [4]byte
	if err := w.peek(fd, b[:]); err != nil {
		return 0, err
	}
	return int(int32(binary.NativeEndian.Uint32(b[:]))), nil
}

// take takes n bytes that are there.
func take(fd, n int) error {
	_, _, err := unix.Recvfrom(fd, make([]byte, n), 0)
	return os.NewSyscallError("recv", err)
}

// takeTask takes a pid, and the userfaultfd that comes with the byte behind
// it, in one call: being killed in between would leave a successor without
// either.
func (w *waker) takeTask(fd int) (*uffd.FD, error) {
	if err := w.awaitTask(fd); err != nil {
		return nil, err
	}
	var b [5]byte
	u, n, err := uffd.ReceiveFD(fd, b[:])
	if errors.Is(err, uffd.ErrNoDescriptor) && n == 4 {
		// The pid alone: the two were not joined.
		u, _, err = uffd.ReceiveFD(fd, b[:1])
	}
	return u, err
}

// awaitTask waits until a pid and the byte behind it are there. A peek does not
// look beyond the first message, so the bytes in the queue are counted.
func (w *waker) awaitTask(fd int) error {
	for {
		n, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
		if err != nil {
			return os.NewSyscallError("ioctl(SIOCINQ)", err)
		}
		if n >= 5 {
			return nil
		}
		if closed(fd) {
			return io.ErrUnexpectedEOF
		}
		if err := w.pause(); err != nil {
			return err
		}
	}
}

// closed reports whether the peer of fd is gone.
func closed(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, _ := unix.Poll(fds, 0)
	return n > 0 && fds[0].Revents&(unix.POLLRDHUP|unix.POLLHUP) != 0
}

// pause waits for bytes that follow at once.
func (w *waker) pause() error { return w.sleep(200 * time.Microsecond) }

// sleep waits for d, or until the context is done. Unlike with a timer of Go's no
// other thread has to be woken for it, on a processor that criu restore may want.
func (w *waker) sleep(d time.Duration) error {
	fds := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
	// Signals, Go's own too, end a wait early.
	for end := time.Now().Add(d); d > 0 && w.ctx.Err() == nil; d = time.Until(end) {
		timeout := unix.NsecToTimespec(d.Nanoseconds())
		if _, err := unix.Ppoll(fds, &timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("ppoll", err)
		}
	}
	return context.Cause(w.ctx)
}
