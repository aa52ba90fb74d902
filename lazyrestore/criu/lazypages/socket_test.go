package lazypages

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
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
