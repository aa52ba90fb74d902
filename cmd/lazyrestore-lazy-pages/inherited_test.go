package main

import (
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A connection that was handed down is taken once. By the time that it is lost
// its number may be a userfaultfd's, which must not be closed.
func TestInheritedConnectionIsTakenOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	f, err := conn.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 200)
	if err != nil {
		t.Fatal(err)
	}
	dial := inherited(fd)
	took, err := dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	took.Close()
	other, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if fd, err = unix.FcntlInt(other.Fd(), unix.F_DUPFD_CLOEXEC, fd); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t.Context()); err == nil {
		t.Error("the connection was had twice")
	}
	if _, err := unix.Write(fd, []byte("x")); err != nil {
		t.Errorf("what has its number now: %v", err)
	}
	_ = unix.Close(fd)
}
