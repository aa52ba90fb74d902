// Command lazyrestore-connect connects to a page server for lazyrestore, where
// that takes a resolver or TLS: it is a helper, and no verb. The packages for
// both are kept out of lazyrestore, for each restore would pay for linking them.
//
//	lazyrestore-connect --fd N [--tls-cacert FILE] [--tls-cert FILE --tls-key FILE] tcp://HOST:PORT
//
// Descriptor N is one end of a pair of sockets. A connection of TCP is sent
// over it, and that is all. One of TLS stays here: after one byte, what comes
// from N is passed on encrypted, and what comes back decrypted, until either
// side ends.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/pageserver/client"
	"github.com/lazyrestore/lazyrestore/pageserver/tlsfiles"
)

// connectTime bounds connecting and the handshake; lazyrestore gives up first.
const connectTime = time.Minute

type settings struct {
	fd    int
	files tlsfiles.Files
}

func main() {
	var s settings
	flag.IntVar(&s.fd, "fd", -1, "descriptor of the socket to lazyrestore")
	flag.StringVar(&s.files.CACert, "tls-cacert", "", "authority of the server's certificate")
	flag.StringVar(&s.files.Cert, "tls-cert", "", "our certificate")
	flag.StringVar(&s.files.Key, "tls-key", "", "its key")
	flag.Parse()
	if flag.NArg() != 1 || s.fd < 0 {
		fmt.Fprintln(os.Stderr, "lazyrestore-connect is a helper of lazyrestore, which starts it for addresses of the form tcp://HOST and tls://HOST")
		os.Exit(2)
	}
	if err := run(&s, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(s *settings, address string) error {
	a, err := client.ParseAddress(address)
	if err != nil {
		return err
	}
	server := a.Servers[0]
	peer, err := peerConn(s.fd)
	if err != nil {
		return err
	}
	defer peer.Close()
	ctx, cancel := context.WithTimeout(context.Background(), connectTime)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(server.Host, strconv.Itoa(int(server.Port))))
	if err != nil {
		return err
	}
	defer conn.Close()
	if server.Network == "tcp" {
		return handOver(peer, conn.(*net.TCPConn))
	}
	pair, err := tlsfiles.Open(s.files, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	secure := tls.Client(conn, pair.Client(server.Host))
	if err := secure.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	if _, err := peer.Write([]byte("r")); err != nil {
		return err
	}
	return relay(peer, secure)
}

// peerConn is the socket to lazyrestore.
func peerConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "lazyrestore")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	peer, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("descriptor %d is not a unix socket", fd), c.Close())
	}
	return peer, nil
}

// handOver gives the connection to lazyrestore.
func handOver(peer *net.UnixConn, conn *net.TCPConn) error {
	f, err := conn.File()
	if err != nil {
		return err
	}
	defer f.Close()
	_, _, err = peer.WriteMsgUnix([]byte("c"), unix.UnixRights(int(f.Fd())), nil)
	return err
}

// relay passes on what either side says until one of them ends. An error of
// the server's side is told; lazyrestore sees the end of the connection.
func relay(peer *net.UnixConn, server *tls.Conn) error {
	done := make(chan error, 2)
	pass := func(to io.Writer, from io.Reader) {
		_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, 256<<10))
		done <- err
	}
	go pass(server, peer)
	go pass(peer, server)
	return <-done
}
