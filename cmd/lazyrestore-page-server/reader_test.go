package main

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
)

// A server goes on when nobody reads its messages any more.
func TestServerOutlivesItsReader(t *testing.T) {
	dir := t.TempDir()
	set, err := imgfile.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	w, err := set.CreateMemory(imgfile.OfTask(7), 1)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	read, write, err := os.Pipe()
	if err == nil {
		err = read.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	cmd := role(t, "page-server", "--no-default-config", "-D", dir, "--lazy-pages", "-v4", "--address", "127.0.0.1", "--status-fd", "3")
	cmd.Stderr = write // where it says that it listens, before it says that it is ready
	s := start(t, cmd)
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.wait(t)
}
