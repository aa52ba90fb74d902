package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/criutest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/lazypages"
)

// dial connects to the daemon of a work directory as criu restore does, and says no more.
func dial(t *testing.T, dir string) error {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, lazypages.SocketName)})
}

// A daemon serves one tree: who connects after criu restore is refused, also when the daemon
// was killed. Nobody would take the memory of its tasks, which would read zeros.
func TestSecondConnectionIsRefused(t *testing.T) {
	tr := plant(t, 2)
	d := start(t, tr.images, "--background", "none")
	tr.connect(t)
	tr.send(t, 0)
	tr.awaitFirst(t)
	if err := dial(t, tr.images); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("beside criu restore: %v, want %v", err, unix.ECONNREFUSED)
	}
	d.kill(t)
	if err := dial(t, tr.images); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("to a daemon that was killed: %v, want %v", err, unix.ECONNREFUSED)
	}
	tr.complete(t, start(t, tr.images, "--resume"))
}

// CRIU itself: the second restore of a work directory fails, and the first is served.
func TestSecondRestoreFails(t *testing.T) {
	criutest.Need(t)
	images := t.TempDir()
	s := criutest.Start(t, "plain", 16)
	s.Dump(t, images)
	d := start(t, images, "--background", "none")
	s.Restore(t, images, "--lazy-pages")
	// In a pid namespace of its own the pid is free.
	criu := criutest.Command(t, "restore", "-d", "-D", images, "-v4", "-o", "restore2.log", "--lazy-pages")
	ctx, cancel := context.WithTimeout(t.Context(), criutest.Patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, "unshare", append([]string{"--pid", "--fork", "--mount-proc", "--kill-child"}, criu.Args...)...).CombinedOutput()
	log, _ := os.ReadFile(filepath.Join(images, "restore2.log"))
	if err == nil || ctx.Err() != nil || !bytes.Contains(log, []byte("Connection refused")) {
		t.Errorf("a second restore in one work directory: %v, %s\n%s", err, out, log)
	}
	s.Tell(t, "go")
	s.Wait(t)
	d.wait(t)
}
