package uffdtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd"
)

// errGone is the answer of a process that has ended.
var errGone = errors.New("the process has ended")

// Thread is one thread of a child. It does one request after another; each
// method that makes one returns at once. Addresses are the child's.
type Thread struct {
	sock int

	mu      sync.Mutex
	waiting []*Reply // in the order of their requests; guarded by mu
}

// Reply is the answer to a request, perhaps yet to come.
type Reply struct {
	thread *Thread

	done  bool // guarded by thread.mu, like the two that follow
	value uint64
	err   error
}

// Load reads the byte at addr.
func (th *Thread) Load(addr uint64) *Reply { return th.request(opLoad, addr) }

// Store writes a byte to addr.
func (th *Thread) Store(addr uint64, b byte) *Reply { return th.request(opStore, addr, uint64(b)) }

// Sum reads length bytes at addr, a multiple of 8, and answers what the
// function Sum gives for them.
func (th *Thread) Sum(addr, length uint64) *Reply { return th.request(opSum, addr, length) }

// Exit ends the process. No reply comes.
func (th *Thread) Exit(status int) *Reply { return th.request(opExit, uint64(status)) }

// Syscall makes a system call with up to six arguments.
func (th *Thread) Syscall(number uint64, args ...uint64) *Reply {
	return th.request(opSyscall, append([]uint64{number}, args...)...)
}

// Madvise is madvise(2).
func (th *Thread) Madvise(addr, length uint64, advice int) *Reply {
	return th.Syscall(unix.SYS_MADVISE, addr, length, uint64(advice))
}

// Munmap is munmap(2).
func (th *Thread) Munmap(addr, length uint64) *Reply {
	return th.Syscall(unix.SYS_MUNMAP, addr, length)
}

// Mprotect is mprotect(2).
func (th *Thread) Mprotect(addr, length uint64, prot int) *Reply {
	return th.Syscall(unix.SYS_MPROTECT, addr, length, uint64(prot))
}

// Mmap is mmap(2) of anonymous memory; the reply is the address.
func (th *Thread) Mmap(addr, length uint64, prot, flags int) *Reply {
	return th.Syscall(unix.SYS_MMAP, addr, length, uint64(prot), uint64(flags|unix.MAP_ANONYMOUS), ^uint64(0), 0)
}

// Mremap is mremap(2); the reply is the new address. The last argument counts
// only with MREMAP_FIXED.
func (th *Thread) Mremap(addr, oldLength, newLength uint64, flags int, to uint64) *Reply {
	return th.Syscall(unix.SYS_MREMAP, addr, oldLength, newLength, uint64(flags), to)
}

// request sends one request. An error of the socket is the reply's.
func (th *Thread) request(op uint64, args ...uint64) *Reply {
	req := request{op: op}
	copy(req.args[:], args)
	th.mu.Lock()
	defer th.mu.Unlock()
	r := &Reply{thread: th}
	if err := unix.Sendto(th.sock, req.bytes(), unix.MSG_NOSIGNAL, nil); err != nil {
		r.done, r.err = true, fmt.Errorf("send a request: %w", errors.Join(errGone, err))
		return r
	}
	th.waiting = append(th.waiting, r)
	return r
}

// Wait waits for the answer and fails the test where it is an errno, does not
// come in Timeout, or cannot come because the process has ended.
func (r *Reply) Wait(t testing.TB) uint64 {
	t.Helper()
	v, err := r.Result()
	if err != nil {
		t.Fatalf("the child's answer: %v", err)
	}
	return v
}

// Result is Wait for other goroutines than the test's. The error is an errno
// where a system call had one; Gone knows the one of a process that ended.
func (r *Reply) Result() (uint64, error) { return r.result(Timeout) }

// Ready reports whether the answer comes within d.
func (r *Reply) Ready(d time.Duration) bool {
	_, err := r.result(d)
	return !errors.Is(err, unix.ETIMEDOUT)
}

// Gone reports whether err means that the process ended before it answered.
func Gone(err error) bool { return errors.Is(err, errGone) }

// result takes answers from the socket until it has r's.
func (r *Reply) result(timeout time.Duration) (uint64, error) {
	th := r.thread
	th.mu.Lock()
	defer th.mu.Unlock()
	for !r.done {
		if err := waitReadable(th.sock, timeout); err != nil {
			return 0, err
		}
		var ans answer
		n, err := unix.Read(th.sock, ans.bytes())
		first := th.waiting[0]
		th.waiting = th.waiting[1:]
		first.done, first.value = true, ans.value
		switch {
		case err != nil || n != answerSize:
			first.err = errors.Join(errGone, err)
		case ans.errno != 0:
			first.err = unix.Errno(ans.errno)
		}
	}
	return r.value, r.err
}

// waitReadable waits until a descriptor has something to read, or has been
// closed at the other end. ETIMEDOUT: neither.
func waitReadable(fd int, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for {
		left := max(0, time.Until(deadline))
		pfd := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(pfd, int((left+time.Millisecond-1)/time.Millisecond))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("poll descriptor %d: %w", fd, err)
		case n > 0:
			return nil
		case left == 0:
			return unix.ETIMEDOUT
		}
	}
}

// Next waits for the next message of f, which does not block.
func Next(t testing.TB, f *uffd.FD) uffd.Msg {
	t.Helper()
	WaitMessage(t, f)
	var msg [1]uffd.Msg
	if _, err := f.Read(msg[:]); err != nil {
		t.Fatalf("read a userfaultfd message: %v", err)
	}
	return msg[0]
}

// WaitMessage waits until f, which does not block, has a message, and does not
// read it.
func WaitMessage(t testing.TB, f *uffd.FD) {
	t.Helper()
	if err := waitReadable(f.Fd(), Timeout); err != nil {
		t.Fatalf("wait for a userfaultfd message: %v", err)
	}
}

// None fails the test if f has a message within d.
func None(t testing.TB, f *uffd.FD, d time.Duration) {
	t.Helper()
	if waitReadable(f.Fd(), d) == nil {
		msg := Next(t, f)
		t.Fatalf("unexpected message: %v", &msg)
	}
}

// Pattern is size bytes, a multiple of 8, that differ for every seed; none of
// them is zero.
func Pattern(seed uint64, size int) []byte {
	p := make([]byte, 0, size)
	x := seed*0x9E3779B97F4A7C15 + 1
	for len(p) < size {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		p = binary.NativeEndian.AppendUint64(p, x|0x0101010101010101)
	}
	return p
}
