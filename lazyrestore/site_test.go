package lazyrestore_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lazyrestore/lazyrestore/pageserver"
)

// A site is a page server, a process of its own. It can be killed, and started
// anew at the same address.
type site struct {
	t    testing.TB
	role servedBy
	addr string
	cmd  *exec.Cmd // nil: it does not run
	hold io.Closer // it runs while this is open
}

// servedBy are the arguments of the role.
type servedBy struct{ Root, Addr string }

// sites counts them.
var sites atomic.Uint32

func newSite(t testing.TB, root string) *site {
	t.Helper()
	// An address of the loopback interface that nobody else has: while the server is down its
	// port is given to nobody, not even to who connects to it.
	n := sites.Add(1)
	s := &site{t: t, role: servedBy{Root: root, Addr: fmt.Sprintf("127.130.%d.%d:0", n>>8, n&255)}}
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *site) start() {
	s.t.Helper()
	s.cmd = self(s.t, "serve", s.role)
	s.cmd.Stderr = os.Stderr
	in, err := s.cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.hold = in
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		s.stop()
		s.t.Fatalf("the page server does not say its address: %v", err)
	}
	s.addr = strings.TrimSpace(line)
	s.role.Addr = s.addr
}

// stop kills the server.
func (s *site) stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	_ = s.hold.Close()
	s.cmd = nil
}

// roleServe serves a directory until its standard input ends.
func roleServe(arguments []byte) error {
	var by servedBy
	if err := json.Unmarshal(arguments, &by); err != nil {
		return err
	}
	catalog, err := pageserver.NewCatalog(by.Root)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", by.Addr)
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	return pageserver.NewServer(catalog, pageserver.ServerOptions{}).Serve(ln)
}
