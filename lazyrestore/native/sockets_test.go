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
	mapped := [16]byte{10: 0xff, 11: 0xff, 12: 10, 13: 9, 14: 8, 15: 2}
	for domain, to := range map[int]unix.Sockaddr{
		unix.AF_INET:  &unix.SockaddrInet4{Port: 9, Addr: [4]byte{10, 9, 8, 2}},
		unix.AF_INET6: &unix.SockaddrInet6{Port: 9, Addr: mapped},
	} {
		for _, cork := range []int{0, 1} {
			packetOnItsWay(t, domain, to, cork)
		}
	}
}

// packetOnItsWay sends one, then begins another, with UDP_CORK or with MSG_MORE.
func packetOnItsWay(t *testing.T, domain int, to unix.Sockaddr, cork int) {
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	send := func(flags int) {
		t.Helper()
		if err := unix.Sendto(fd, []byte("news"), flags, to); err != nil {
			t.Fatal(err)
		}
	}
	send(0)
	if n, err := unix.IoctlGetInt(fd, unix.TIOCOUTQ); err != nil || n == 0 {
		t.Fatalf("nothing is on its way: %v", err)
	}
	for _, on := range []int{0, cork} {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_CORK, on); err != nil {
			t.Fatal(err)
		}
		if why, err := udpSocket(fd); why != "" || err != nil {
			t.Errorf("domain %d, a packet on its way: %q, %v", domain, why, err)
		}
	}
	send(unix.MSG_MORE * (1 - cork))
	for range 2 { // what is looked at stays
		if why, err := udpSocket(fd); !strings.Contains(why, "not sent") || err != nil {
			t.Errorf("domain %d, UDP_CORK %d, a packet that is held back: %q, %v", domain, cork, why, err)
		}
	}
}
