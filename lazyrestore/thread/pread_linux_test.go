package thread

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What is in the page cache is read, up to the end of the file, and nothing is
// allocated for it.
func TestPread(t *testing.T) {
	fd, err := unix.MemfdCreate("pread", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	want := bytes.Repeat([]byte("what is there"), 1000)
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := unix.Write(fd, want); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 100)
	for _, c := range []struct {
		name string
		read func(int, []byte, int64) (int, unix.Errno)
		fd   int
	}{{"PreadMemory", PreadMemory, fd}, {"PreadNow", PreadNow, int(f.Fd())}} {
		off := int64(len(want) - 60)
		if n, errno := c.read(c.fd, p, off); errno != 0 || !bytes.Equal(p[:n], want[off:]) {
			if errno == unix.EOPNOTSUPP && c.name == "PreadNow" {
				continue // a file system that cannot tell
			}
			t.Errorf("%s at the end of a file: %d bytes, errno %d", c.name, n, errno)
		}
		if n, errno := c.read(c.fd, p, int64(len(want))); n != 0 || errno != 0 {
			t.Errorf("%s behind the end of a file: %d bytes, errno %d", c.name, n, errno)
		}
		if _, errno := c.read(-1, p, 0); errno != unix.EBADF {
			t.Errorf("%s of no file: errno %d", c.name, errno)
		}
		if got := testing.AllocsPerRun(100, func() { c.read(c.fd, p, 0) }); got != 0 {
			t.Errorf("%s allocates %v times", c.name, got)
		}
	}
}
