package native

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
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
