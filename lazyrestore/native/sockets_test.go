package native

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A packet that waits for the address of a neighbour who does not answer goes, or is given up,
// without its socket: that is no reason to refuse a process. One that is held back by its
// socket is. The test has a network of its own.
func TestPacketOnItsWay(t *testing.T) {
	uffdtest.Need(t, "root", "cmd:ip")
	const apart = "LAZYRESTORE_TEST_NETWORK"
	if os.Getenv(apart) == "" {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(self, "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), apart+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	for _, args := range []string{
		"link add here type veth peer name there",
		"address add 10.9.8.1/24 dev here", "link set here up", "link set there up",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", args, err, out)
		}
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	send := func() {
		t.Helper()
		if err := unix.Sendto(fd, []byte("news"), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{10, 9, 8, 2}}); err != nil {
			t.Fatal(err)
		}
	}
	send()
	if n, err := unix.IoctlGetInt(fd, unix.TIOCOUTQ); err != nil || n == 0 {
		t.Fatalf("nothing is on its way: %v", err)
	}
	if why, err := udpSocket(fd); why != "" || err != nil {
		t.Errorf("a packet on its way: %q, %v", why, err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_CORK, 1); err != nil {
		t.Fatal(err)
	}
	send()
	if why, err := udpSocket(fd); !strings.Contains(why, "not sent") || err != nil {
		t.Errorf("a packet that is held back: %q, %v", why, err)
	}
}
