package native

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

// A file that was made to be written once, and may not be opened so again, is all the same by
// who has no power over files.
func TestFileThatIsWrittenOnce(t *testing.T) {
	st := &State{
		Shared: []SharedObject{{Name: "once", Size: 5, More: More{Mode: unix.S_IFREG | 0o444, UID: uint32(unix.Geteuid()), GID: uint32(unix.Getegid())}}},
		Opens:  []Open{{Kind: OpenDeleted, Flags: unix.O_RDWR, Shared: 1}},
	}
	r := &reopener{st: st, opts: new(RebuildOptions), places: placesBeside(st)}
	defer r.close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with it, and what it has lost
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		err := unix.Capset(&hdr, &none[0])
		if err == nil {
			err = r.all(t.Context())
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var file unix.Stat_t
	if err := unix.Fstat(r.opens[0], &file); err != nil || file.Mode&0o777 != 0o444 {
		t.Errorf("its mode is %o, %v, want 444", file.Mode&0o777, err)
	}
	if _, err := unix.Write(r.opens[0], []byte("news")); err != nil {
		t.Errorf("it is not written: %v", err)
	}
}

// A file without a name is made again in memory also where its name was longer than that of a memory file can be.
func TestLongNameOfAFile(t *testing.T) {
	r := &reopener{st: new(State), opts: new(RebuildOptions), places: placesBeside(new(State))}
	defer r.close()
	for _, n := range []int{249, 250, 255} {
		fd, err := r.newObject(&SharedObject{Name: strings.Repeat("n", n)})
		if err != nil {
			t.Errorf("a name of %d bytes: %v", n, err)
			continue
		}
		_ = unix.Close(fd)
	}
}

// What no image takes is refused by what is queued, before anything is written.
func TestRefusesTooMuchQueued(t *testing.T) {
	much := make([]byte, 1<<20)
	var pipes, sockets State
	for range image.MaxProcess >> 20 {
		pipes.Opens = append(pipes.Opens, Open{Data: much})
		sockets.Sockets = append(sockets.Sockets, Socket{Queue: [][]byte{much[:1<<19], much[:1<<19]}})
	}
	for name, st := range map[string]*State{"pipes": &pipes, "sockets": &sockets} {
		c := &capture{st: st}
		if err := c.refuseSize(st.queued()); err != nil {
			t.Errorf("%s, as much as there may be: %v", name, err)
		}
		st.Opens = append(st.Opens, Open{Data: much[:1]})
		var refused *RefusedError
		if err := c.refuseSize(st.queued()); !errors.As(err, &refused) {
			t.Errorf("%s, a byte more: %v", name, err)
		}
	}
}

func TestObjectName(t *testing.T) {
	for _, tt := range []struct{ link, want string }{
		{"/memfd:heap (deleted)", "heap"},
		{"/memfd: (deleted)", ""},
		{"/memfd:/jit/code (old) (deleted)", "/jit/code (old)"},
		{"/memfd:twice (deleted) (deleted)", "twice (deleted)"},
		{"/dev/zero (deleted)", "zero"},
		{"/tmp/memfd:a/log (deleted)", "log"},
		{"/dev/shm/ring", "ring"},
	} {
		if got := objectName(tt.link); got != tt.want {
			t.Errorf("the object of %q has the name %q, want %q", tt.link, got, tt.want)
		}
	}
}
