package lazypages

import (
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Whoever has opened the file of a lock that is released has opened one that is no longer there: a lock of that keeps
// nobody out.
func TestLockOfARemovedFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, LockName)
	for name, again := range map[string]bool{"removed": false, "made again": true} {
		t.Run(name, func(t *testing.T) {
			first, err := LockDir(t.Context(), dir)
			if err != nil {
				t.Fatal(err)
			}
			fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Close(fd) }()
			late := &Lock{path: path}
			if _, err := late.lock(fd); !errors.Is(err, unix.EWOULDBLOCK) {
				t.Errorf("locked a second time: %v", err)
			}
			first.Release()
			if again {
				second, err := LockDir(t.Context(), dir)
				if err != nil {
					t.Fatal(err)
				}
				defer second.Release()
			}
			if current, err := late.lock(fd); current || err != nil || late.held != nil {
				t.Errorf("locked a file that was removed (%v)", err)
			}
		})
	}
}
