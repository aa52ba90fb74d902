package native

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A file system that was not told once, as where a mapping was joined with another
// meanwhile, is no other one from then on: its files would not be in the image.
func TestFileSystemIsToldOnceItCanBe(t *testing.T) {
	const dev = 1
	c := new(capture)
	if in, err := c.inMemory(dev, "/proc/self/map_files/0-1000"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a path that leads nowhere is in memory: %v, %v", in, err)
	}
	if in, err := c.inMemory(dev, "/proc/self"); in || err != nil {
		t.Errorf("/proc is in memory: %v, %v", in, err)
	}
	fd, err := unix.MemfdCreate("memory", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if in, err := c.inMemory(dev+1, "/proc/self/fd/"+strconv.Itoa(fd)); !in || err != nil {
		t.Errorf("a memory file is in memory: %v, %v", in, err)
	}
}

// A file whose owner a user namespace does not have is kept, and does not run as its owner.
func TestOwnerThatIsNotThere(t *testing.T) {
	uffdtest.Need(t, "userns")
	const apart = "LAZYRESTORE_TEST_USER_NAMESPACE"
	if os.Getenv(apart) == "" {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(self, "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), apart+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	fd, err := unix.MemfdCreate("memory", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, tt := range []struct{ uid, mode, want uint32 }{{0, 0o4755, 0o4755}, {1000, 0o4755, 0o755}} {
		if err := new(reopener).giveAway(fd, &More{UID: tt.uid, Mode: tt.mode}); err != nil {
			t.Errorf("owner %d: %v", tt.uid, err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&0o7777 != tt.want || st.Uid != 0 {
			t.Errorf("owner %d, mode %o: now %d, %o, %v, want 0, %o", tt.uid, tt.mode, st.Uid, st.Mode, err, tt.want)
		}
	}
}

func TestEqualIn(t *testing.T) {
	const size = 2*compareStep + 100
	content := bytes.Repeat([]byte("memory "), size/7+1)[:size]
	with := func(at int) []byte {
		b := bytes.Clone(content)
		b[at]++
		return b
	}
	tests := []struct {
		name string
		file []byte
		off  int64
		want bool
	}{
		{"the same", content, 0, true},
		{"the same further on", append(make([]byte, 5), content...), 5, true},
		{"first byte", with(0), 0, false},
		{"last of the first step", with(firstCompare - 1), 0, false},
		{"first of the second step", with(firstCompare), 0, false},
		{"last of the second step", with(firstCompare + compareStep - 1), 0, false},
		{"last byte", with(size - 1), 0, false},
		{"shorter", content[:size-1], 0, false},
		{"within the first step", content[:10], 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := equalIn(bytes.NewReader(tt.file), tt.off, bytes.NewReader(content), 0, size)
			if got != tt.want || err != nil {
				t.Errorf("equalIn = %v, %v; want %v", got, err, tt.want)
			}
		})
	}
	if got, err := equalIn(bytes.NewReader(content), 0, bytes.NewReader(content[:9]), 0, size); !errors.Is(err, image.ErrDamaged) {
		t.Errorf("equalIn with a kept content that is short = %v, %v; want an error that says damaged", got, err)
	}
}
