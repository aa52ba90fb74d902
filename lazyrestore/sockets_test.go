package lazyrestore_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

var socketScenes = []survival{
	{scene: "socket-pairs"},
	{scene: "listeners"},
	{scene: "multipath"},
	{scene: "socket-options"},
	{scene: "datagrams"},
	{scene: "portless"},
}

func TestSocketsSurvive(t *testing.T) { survives(t, socketScenes) }

// One end of a pair in another process, one connection: refused.
func TestRefusesOutsideSocket(t *testing.T) {
	t.Parallel()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	theirs := os.NewFile(uintptr(p[1]), "socket")
	s := launch(t, startWith{scene: "outside-pipe", files: []*os.File{theirs}})
	theirs.Close()
	s.ready(1)
	if err := s.refused(false); !regexp.MustCompile(`descriptor 3 \(socket:.*: its other end is in another process`).MatchString(err.Error()) {
		t.Error(err)
	}
	s.release()
	s.well()
}

// An empty message is refused however often it is looked at, and is not taken for the end.
func TestRefusesEmptyMessage(t *testing.T) {
	for name, args := range map[string][]string{"datagrams": {"datagrams"}, "packets": {"packets"}, "shut-down": {"packets", "shut"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, "empty-message", args...)
			for _, dry := range []bool{true, true, false} {
				if err := s.refused(dry); !regexp.MustCompile(`descriptor \d+ \(socket:.*: an empty message is queued in it`).MatchString(err.Error()) {
					t.Error(err)
				}
			}
			s.release()
			s.well()
		})
	}
}

// The file of a unix socket is as it was after a look whether a restore is possible,
// and after one that fails behind the making of it.
func TestFailedRestoreAndSocketFile(t *testing.T) {
	t.Parallel()
	s := start(t, "listeners")
	address := s.says(`bound to (\S+)`)[1]
	s.checkpoint(plainest)
	path := "/tmp/lr-subject-" + strconv.Itoa(s.pid)
	fails := func() {
		t.Helper()
		taken := must(net.Listen("tcp", address))(t)
		defer taken.Close()
		if err := s.tryRestore(filling); err == nil || !contains(err.Error(), "bind: ") {
			t.Fatalf("%v, want that an address is taken", err)
		}
	}
	look := func() {
		t.Helper()
		if err := s.tryRestore(lazyrestore.RestoreOptions{DryRun: true}); err != nil {
			t.Fatal(err)
		}
	}
	left := must(os.Lstat(path))(t)
	look()
	if now, err := os.Lstat(path); err != nil || !os.SameFile(left, now) {
		t.Errorf("after the look it is another file, %v", err)
	}
	fails()
	if now, err := os.Lstat(path); err != nil || now.Mode() != left.Mode() {
		t.Errorf("after the failure it is another file, %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for name, does := range map[string]func(){"look": look, "failure": fails} {
		if does(); !errors.Is(unix.Access(path, unix.F_OK), unix.ENOENT) {
			t.Errorf("after the %s the file is there", name)
		}
	}
	s.restore(filling)
	s.release()
	s.well()
}

// A socket goes by an address that the machine of the restore does not have: refused, and
// restored once it has it. The test has a network of its own.
func TestRestoreRefusesMissingInterface(t *testing.T) {
	needAll(t)
	const apart = "LAZYRESTORE_TEST_NETWORK"
	if os.Getenv(apart) == "" {
		cmd := exec.Command(must(os.Executable())(t), "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), apart+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	control := must(unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0))(t)
	defer unix.Close(control)
	address := func(a ...byte) {
		t.Helper()
		lo := must(unix.NewIfreq("lo"))(t)
		if err := errors.Join(lo.SetInet4Addr(a), unix.IoctlIfreq(control, unix.SIOCSIFADDR, lo)); err != nil {
			t.Fatal(err)
		}
	}
	address(10, 99, 99, 99)
	s := start(t, "multicast-address")
	s.checkpoint(plainest)
	address(127, 0, 0, 1)
	for _, look := range []bool{true, false} {
		err := s.tryRestore(lazyrestore.RestoreOptions{DryRun: look})
		var refused *lazyrestore.RefusedError
		if !errors.As(err, &refused) || !contains(err.Error(), "set option 32 of level 0 of a socket: cannot assign requested address") ||
			!contains(refused.Reasons[0].Help, "give this machine the address") {
			t.Errorf("%v, want a refusal that names the option", err)
		}
	}
	address(10, 99, 99, 99)
	s.restore(filling)
	s.release()
	s.well()
}

// Somebody has taken the place of a listener: refused, and nothing is taken
// from them.
func TestRestoreRefusesTakenAddress(t *testing.T) {
	t.Parallel()
	s := start(t, "listeners")
	s.checkpoint(plainest)
	path := "/tmp/lr-subject-" + strconv.Itoa(s.pid)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l := must(net.Listen("unix", path))(t)
	err := s.tryRestore(filling)
	var refused *lazyrestore.RefusedError
	if !errors.As(err, &refused) || !contains(err.Error(), "socket "+path+": somebody has it") {
		t.Errorf("%v, want a refusal that names the socket", err)
	}
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("the listener is gone: %v", err)
	} else {
		c.Close()
	}
	l.Close()
	s.restore(filling)
	s.release()
	s.well()
}
