package lazypages

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Signals, which Go sends itself too, do not end a sleep before its time; the end of
// the context does.
func TestSleepLastsDespiteSignals(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w, err := newWaker(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	tid, stop := unix.Gettid(), make(chan struct{})
	var signals sync.WaitGroup
	signals.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_ = unix.Tgkill(unix.Getpid(), tid, unix.SIGURG)
			case <-stop:
				return
			}
		}
	})
	began := time.Now()
	if err := w.sleep(grace); err != nil || time.Since(began) < grace {
		t.Errorf("slept for %v of %v: %v", time.Since(began), grace, err)
	}
	close(stop)
	signals.Wait()
	cancel()
	if err := w.sleep(time.Hour); err == nil {
		t.Error("slept beyond the end of the context")
	}
}

// Who sees the socket may connect to it, also where an earlier daemon left one.
func TestSocketThatIsSeenListens(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, SocketName)
	for range 2 {
		fd, err := bind(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a socket that nobody can connect to is seen: %v", err)
		}
		if err := listen(fd, dir); err != nil {
			t.Fatal(err)
		}
		peer, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Connect(peer, &unix.SockaddrUnix{Name: path}); err != nil {
			t.Error(err)
		}
		if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
			t.Errorf("%v in the directory, %v", names, err)
		}
		_, _ = unix.Close(peer), unix.Close(fd)
	}
}

// One connection is taken. Who is behind it in the queue, or waits for a place there, is
// refused, and not left to think that it is served.
func TestOneConnectionIsTaken(t *testing.T) {
	dir := t.TempDir()
	listener, err := bind(dir)
	if err == nil {
		err = listen(listener, dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(listener)
	dial := func(flags int) (int, error) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|flags, 0)
		if err != nil {
			return -1, err
		}
		return fd, unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, SocketName)})
	}
	first, err := dial(0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(first)
	if fd, err := dial(unix.SOCK_NONBLOCK); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a second connection in the queue: %v, want %v", err, unix.EAGAIN)
		_ = unix.Close(fd)
	}
	tid, second := make(chan int), make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		tid <- unix.Gettid()
		fd, err := dial(0)
		_ = unix.Close(fd)
		second <- err
	}()
	awaitCall(t, <-tid, unix.SYS_CONNECT)
	w, err := newWaker(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	conn, err := w.accept(listener)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(conn)
	if err := <-second; !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("who waited for a place in the queue: %v, want %v", err, unix.ECONNREFUSED)
	}
	if fd, err := dial(0); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("who came later: %v, want %v", err, unix.ECONNREFUSED)
		_ = unix.Close(fd)
	}
	if _, err := unix.Write(first, []byte("1234")); err != nil {
		t.Fatal(err)
	}
	var b [4]byte
	if err := w.peek(conn, b[:]); err != nil || string(b[:]) != "1234" {
		t.Errorf("of the first came %q, %v", b, err)
	}
}

// awaitCall waits until a thread of this process sleeps in a system call.
func awaitCall(t *testing.T, tid, number int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/syscall", tid))
		if err == nil && strings.HasPrefix(string(b), fmt.Sprintf("%d ", number)) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("thread %d: %q, %v", tid, b, err)
		}
	}
}
