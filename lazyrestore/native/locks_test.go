package native

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A lock of a file that the process opens itself is not looked for in what keeps its place.
func TestLockOfOwnFile(t *testing.T) {
	for _, tt := range []struct {
		path string
		want bool
	}{{"/proc/7/status", true}, {"/dev/null", false}} {
		var fds [2]int
		for i := range fds {
			f, err := os.Open("/dev/null")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			fds[i] = int(f.Fd())
		}
		if err := unix.Flock(fds[0], unix.LOCK_SH|unix.LOCK_NB); err != nil {
			t.Fatal(err)
		}
		r := &reopener{opens: fds[1:], st: &State{
			Threads: []Thread{{TID: 7}}, Opens: []Open{{Kind: OpenDevice, Path: tt.path}},
			Locks: []Lock{{Kind: LockFlock, Write: true}},
		}}
		if err := r.lock(); err != nil {
			t.Errorf("%s: %v", tt.path, err)
		}
		if err := r.refused.err(); (err == nil) != tt.want {
			t.Errorf("%s, with /dev/null locked by somebody else: %v", tt.path, err)
		}
	}
}
