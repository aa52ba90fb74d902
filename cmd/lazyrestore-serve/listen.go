package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/pageserver/tlsfiles"
)

// listen opens the sockets: those that systemd gives, or the one that the flags
// name.
func (v *serveVerb) listen() ([]net.Listener, error) {
	var config *tls.Config
	if v.withTLS() {
		pair, err := tlsfiles.Open(v.tls, v.log)
		if err != nil {
			return nil, err
		}
		config = pair.Server()
	}
	listeners, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("sockets of systemd: %w", err)
	}
	for i, ln := range listeners {
		if ln == nil {
			closeAll(listeners)
			return nil, fmt.Errorf("socket %d of systemd is no stream socket (ListenStream=)", i)
		}
	}
	if len(listeners) == 0 {
		ln, err := v.listenOn()
		if err != nil {
			return nil, err
		}
		listeners = []net.Listener{ln}
	}
	for i, ln := range listeners {
		switch {
		case config != nil:
			listeners[i] = tls.NewListener(ln, config)
		case !v.insecure && !local(ln.Addr()):
			closeAll(listeners)
			return nil, openToAll(ln.Addr().String())
		}
	}
	return listeners, nil
}

// withTLS reports whether TLS was asked for.
func (v *serveVerb) withTLS() bool { return v.tls != (tlsfiles.Files{}) }

func closeAll(listeners []net.Listener) {
	for _, ln := range listeners {
		if ln != nil {
			ln.Close()
		}
	}
}

func openToAll(address string) error {
	return &cli.UsageError{
		Problem: "without TLS whoever reaches " + address + " could read the images",
		Hint:    "give --tls-cacert, --tls-cert and --tls-key, or --insecure in a network where all may read them",
	}
}

// local reports whether only this machine reaches an address.
func local(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return !ok || tcp.IP.IsLoopback()
}

// listenOn opens the socket of --address and --port. It is not opened if it
// would be open to all.
func (v *serveVerb) listenOn() (net.Listener, error) {
	if path, unix := strings.CutPrefix(v.address, "unix:"); unix || strings.Contains(v.address, "/") {
		return listenUnix(path)
	}
	addr, err := net.ResolveTCPAddr("tcp", net.JoinHostPort(v.address, strconv.Itoa(v.port)))
	if err != nil {
		return nil, err
	}
	if !v.withTLS() && !v.insecure && !local(addr) {
		return nil, openToAll(addr.String())
	}
	ln, err := net.ListenTCP("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%w: is another server running? --port takes another port", err)
	}
	if err != nil {
		return nil, err // not a nil *net.TCPListener
	}
	return ln, nil
}
