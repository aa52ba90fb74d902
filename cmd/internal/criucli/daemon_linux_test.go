package criucli

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// A standard descriptor that readiness is told on stays open.
func TestReadyKeepsStandardDescriptors(t *testing.T) {
	saved, err := unix.FcntlInt(2, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err == nil {
		err = unix.Dup3(int(w.Fd()), 2, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	defer func() {
		if err := unix.Dup3(saved, 2, 0); err != nil {
			t.Error(err)
		}
		_ = unix.Close(saved)
		r.Close()
	}()
	o := Options{StatusFD: 2}
	if err := o.Ready(); err != nil {
		t.Fatal(err)
	}
	word := make([]byte, 2)
	if n, err := r.Read(word); n != 1 || word[0] != 0 {
		t.Errorf("%d bytes %v were written (%v)", n, word[:n], err)
	}
	for range 4 { // finalizers run some time after the collection that finds them
		runtime.GC()
		runtime.Gosched()
	}
	if _, err := unix.FcntlInt(2, unix.F_GETFD, 0); err != nil {
		t.Errorf("descriptor 2 after Ready: %v", err)
	}
}
