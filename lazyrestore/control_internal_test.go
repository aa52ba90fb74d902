package lazyrestore

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The sockets of killed pagers go, those of others stay.
func TestSweepControls(t *testing.T) {
	dir := t.TempDir()
	old := time.Now().Add(-time.Hour)
	make1 := func(name string, listens bool) string {
		path := filepath.Join(dir, name)
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			t.Fatal(err)
		}
		if listens {
			if err := unix.Listen(fd, 1); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	dead, alive, fresh, own := make1("1.sock", false), make1("2.sock", true), make1("3.sock", false), make1("4.sock", false)
	file := filepath.Join(dir, "5.sock")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dead, alive, own, file} {
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	sweepControls(dir, own)
	for path, stays := range map[string]bool{dead: false, alive: true, fresh: true, own: true, file: true} {
		if _, err := os.Lstat(path); (err == nil) != stays {
			t.Errorf("%s: %v, want it to stay: %v", filepath.Base(path), err, stays)
		}
	}
}
