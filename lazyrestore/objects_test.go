package lazyrestore_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

var objectScenes = []survival{
	// what is left of them goes by
	{scene: "timerfds", changed: []string{"descriptor [0-9]+"}},
	{scene: "signalfds"},
	{scene: "inotifies"},
	{scene: "fifos"},
	{scene: "pipes-again"},
	{scene: "locks"},
	{scene: "leases"},
	{scene: "owners"},
	{scene: "epoll-displaced"},
	{scene: "many-watches"},
	{scene: "thousand", changed: []string{"descriptor [0-9]+"}},
}

func TestObjectsSurvive(t *testing.T) { survives(t, objectScenes) }

// What was a pipe to the outside may be a file after the restore, which no epoll watches: it
// goes without, and the user is told.
func TestEpollOfLostStream(t *testing.T) {
	t.Parallel()
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	s := launch(t, startWith{scene: "epoll-stdin", stdin: in})
	s.ready(1)
	s.checkpoint(plainest)
	s.restore(lazyrestore.RestoreOptions{Stdio: lazyrestore.StdioSaved})
	warned := s.proc.Result().Warnings
	for _, num := range []string{"0", "5"} {
		if !slices.ContainsFunc(warned, func(w string) bool { return contains(w, "descriptor "+num+" is not what it was") }) {
			t.Errorf("warned of %q, want a word about the watch on descriptor %s", warned, num)
		}
	}
	s.release()
	s.well()
}

// A lock that somebody has taken meanwhile is a refusal, and one that says so;
// when it is free again the process comes back.
func TestRestoreRefusesTakenLock(t *testing.T) {
	t.Parallel()
	s := start(t, "locks")
	s.checkpoint(plainest)
	f := must(os.OpenFile(filepath.Join(s.dir, "locked"), os.O_RDWR, 0))(t)
	defer f.Close()
	for name, lock := range map[string]func() error{
		"flock": func() error { return unix.Flock(int(f.Fd()), unix.LOCK_SH) },
		"fcntl": func() error {
			return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 15, Len: 1})
		},
	} {
		if err := lock(); err != nil {
			t.Fatal(err)
		}
		err := s.tryRestore(filling)
		var refused *lazyrestore.RefusedError
		if !errors.As(err, &refused) || !contains(err.Error(), "somebody else has") {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
		if err := errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK})); err != nil {
			t.Fatal(err)
		}
	}
	s.restore(filling)
	s.release()
	s.well()
}
