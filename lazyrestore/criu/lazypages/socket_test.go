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

	"github.com/lazyrestore/lazyrestore/lazyrestore/pager"
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

// A daemon that ends with no task drops nothing that criu restore says: what was said stays there for a successor, and what has not
// been cannot be said any more, as its tasks would run with the userfaultfds gone.
func TestNothingIsSaidToNobody(t *testing.T) {
	for _, c := range []struct {
		name              string
		connects, accepts bool
		says              string
		want              bool // that all is over
	}{
		{"nobody has connected", false, false, "", true},
		{"connected", true, false, "", true},
		{"taken", true, true, "", true},
		{"connected, and has spoken", true, false, "1234", false},
		{"taken, and has spoken", true, true, "1234", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			listener, err := bind(dir)
			if err == nil {
				err = listen(listener, dir)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(listener)
			k, err := pager.StartKeeper()
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			d := &daemon{keeper: k, listener: listener, state: newState(dir, k, "")}
			d.speaks(listener)
			criu, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(criu)
			name := &unix.SockaddrUnix{Name: filepath.Join(dir, SocketName)}
			if c.connects {
				if err := unix.Connect(criu, name); err != nil {
					t.Fatal(err)
				}
			}
			if c.accepts {
				conn, err := acceptLast(listener)
				if err != nil {
					t.Fatal(err)
				}
				d.speaks(conn)
			}
			if _, err := unix.Write(criu, []byte(c.says)); c.connects && err != nil {
				t.Fatal(err)
			}
			if got := d.silence(); got != c.want {
				t.Fatalf("all is over: %v, want %v", got, c.want)
			}
			switch {
			case !c.connects:
				if err := unix.Connect(criu, name); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("who connects then: %v, want %v", err, unix.ECONNREFUSED)
				}
			case c.want:
				if _, err := unix.Write(criu, []byte("1234")); !errors.Is(err, unix.EPIPE) {
					t.Errorf("who speaks then: %v, want %v", err, unix.EPIPE)
				}
			default:
				b := make([]byte, 8)
				if n, _, err := unix.Recvfrom(d.queue, b, 0); err != nil || string(b[:n]) != c.says {
					t.Errorf("of what was said there is %q, %v; want %q", b[:max(n, 0)], err, c.says)
				}
				_ = unix.Close(d.queue)
			}
		})
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
