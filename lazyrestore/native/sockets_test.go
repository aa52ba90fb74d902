package native

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
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

// Without CAP_NET_ADMIN what is queued between two sockets is read and put back all the
// same, as far as anybody may enlarge a buffer; more is refused in words.
func TestQueuesOfUsers(t *testing.T) {
	done := make(chan struct{})
	go func() { // by a thread that ends with it, and its privileges
		defer close(done)
		runtime.LockOSThread()
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&hdr, &none[0]); err != nil {
			t.Error(err)
			return
		}
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fds[0])
		defer unix.Close(fds[1])
		if err := unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<30); err != nil {
			t.Error(err)
			return
		}
		most, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF)
		if err != nil {
			t.Error(err)
			return
		}
		large := max(most/2, 8192) // more than half a buffer is a whole one with what the kernel adds
		for _, tt := range []struct {
			typ    int
			queue  []int // lengths of messages
			whole  string
			filled string
		}{
			{unix.SOCK_STREAM, []int{large}, "", ""},
			{unix.SOCK_STREAM, []int{most + 1<<20}, "", "message 1 of 1"},
			{unix.SOCK_SEQPACKET, []int{1, large, 10}, "", ""},
			{unix.SOCK_DGRAM, []int{large, 1}, "", ""},
			{unix.SOCK_DGRAM, []int{1, most}, largeMessage, "message 2 of 2"},
		} {
			queueOfUser(t, tt.typ, tt.queue, tt.whole, tt.filled)
		}
	}()
	<-done
}

func queueOfUser(t *testing.T, typ int, lengths []int, whole, filled string) {
	t.Helper()
	s := &Socket{Type: typ}
	for i, n := range lengths {
		s.Queue = append(s.Queue, bytes.Repeat([]byte{byte(i + 1)}, n))
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	usual, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		t.Error(err)
		return
	}
	why, err := fillSocket(fds[0], s.Queue)
	if err != nil || filled == "" && why != "" || !strings.HasPrefix(why, filled) {
		t.Errorf("type %d, messages of %d: put back: %q, %v, want %q", typ, lengths, why, err, filled)
	}
	if now, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF); err != nil || filled == "" && now != usual {
		t.Errorf("type %d, messages of %d: the buffer is of %d bytes, %v, instead of %d", typ, lengths, now, err, usual)
	}
	if typ != unix.SOCK_STREAM {
		if why, err := wholeQueue(s, fds[0]); why != whole || err != nil {
			t.Errorf("type %d, messages of %d: looked at: %q, %v, want %q", typ, lengths, why, err, whole)
		}
	}
	for _, m := range s.Queue {
		b := make([]byte, len(m)+1)
		if n, err := unix.Read(fds[1], b); filled == "" && (err != nil || !bytes.Equal(b[:n], m)) {
			t.Errorf("type %d, messages of %d: %d bytes of %d came, %v", typ, lengths, n, len(m), err)
		}
	}
}
