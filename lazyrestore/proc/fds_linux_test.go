package proc

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

func TestCompareFiles(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	dup, err := unix.Dup(int(r.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dup)
	pid := os.Getpid()
	if order, err := CompareFiles(pid, int(r.Fd()), pid, dup); err != nil || order != 0 {
		t.Errorf("a duplicate: %v, %v", order, err)
	}
	if order, err := CompareFiles(pid, int(r.Fd()), pid, int(w.Fd())); err != nil || order == 0 {
		t.Errorf("the other end: %v, %v", order, err)
	}
}

func TestCopyPipe(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	if _, err := unix.FcntlInt(uintptr(p[0]), unix.F_SETPIPE_SZ, 32<<10); err != nil {
		t.Fatal(err)
	}
	data, size, err := CopyPipe(p[0])
	if err != nil || len(data) != 0 || size != 32<<10 {
		t.Errorf("empty: %d bytes of %d, %v", len(data), size, err)
	}
	// Packets of odd sizes fill the pipe's slots without filling its bytes.
	var want []byte
	for i := range 7 {
		b := bytes.Repeat([]byte{byte(i + 1)}, 4000+i)
		want = append(want, b...)
		if _, err := unix.Write(p[1], b); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the content stays
		data, size, err = CopyPipe(p[0])
		if err != nil || !bytes.Equal(data, want) || size != 32<<10 {
			t.Fatalf("%d bytes of %d, %v; want %d", len(data), size, err, len(want))
		}
	}
}
