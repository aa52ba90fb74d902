package native

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A file system that says that it does not know what it is keeps no process from a checkpoint.
func TestFileSystemWithoutStatfs(t *testing.T) {
	uffdtest.Need(t, "root")
	dir := t.TempDir()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		err = unix.Mount("none", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd))
	}
	if err != nil {
		t.Logf("no FUSE here: %v", err)
		return
	}
	done := make(chan struct{})
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		<-done
	}()
	go func() {
		defer close(done)
		for buf := make([]byte, 1<<17); ; {
			n, err := unix.Read(fd, buf)
			if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil || n < 16 {
				return // it is unmounted
			}
			const initialize = 26
			le := binary.NativeEndian
			var body []byte
			errno := unix.ENOSYS
			if le.Uint32(buf[4:]) == initialize {
				errno, body = 0, make([]byte, 64)
				le.PutUint32(body, 7)
				le.PutUint32(body[4:], 23)
				le.PutUint32(body[20:], 4096) // max_write
			}
			reply := le.AppendUint32(nil, uint32(16+len(body)))
			reply = le.AppendUint32(reply, uint32(-int32(errno)))
			reply = append(append(reply, buf[8:16]...), body...)
			_, _ = unix.Write(fd, reply)
		}
	}()
	if in, err := new(capture).inMemory(1, dir); in || err != nil {
		t.Errorf("it is in memory: %v, %v", in, err)
	}
}
