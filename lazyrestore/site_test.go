package lazyrestore_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

func newSite(t testing.TB, root string) *site {
	t.Helper()
	s := &site{t: t, role: servedBy{Root: root, Addr: "127.0.0.1:0"}}
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
	ln, err := listenAgain(by.Addr)
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

// listenAgain listens at an address of a server that was killed. A client that
// looks for the old one may have found itself there: what connects to a port of
// its own range may get the same one as its own.
func listenAgain(addr string) (ln net.Listener, err error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		ln, err = net.Listen("tcp", addr)
		if !errors.Is(err, unix.EADDRINUSE) || time.Now().After(deadline) {
			return ln, err
		}
	}
}
