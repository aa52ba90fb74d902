package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"

	"github.com/lazyrestore/lazyrestore/cmd/internal/criucli"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pagetls"
)

// listen opens the socket that the command line says.
func listen(ctx context.Context, o *criucli.Options, log *slog.Logger) (net.Listener, error) {
	var config *tls.Config
	if o.TLS {
		var err error
		files := pagetls.Options{CACert: o.CACert, CACRL: o.CACRL, Cert: o.Cert, Key: o.Key}
		if config, err = files.Server(); err != nil {
			return nil, err
		}
	}
	l, err := socket(ctx, o)
	if err != nil {
		return nil, err
	}
	log.Info("listening", "address", l.Addr())
	if config != nil {
		return tls.NewListener(l, config), nil
	}
	if tcp, ok := l.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() && o.Socket < 0 {
		log.Warn("without --tls whoever reaches the port may read or send memory", "address", l.Addr())
	}
	return l, nil
}

func socket(ctx context.Context, o *criucli.Options) (net.Listener, error) {
	if o.Socket >= 0 {
		return inherit(o.Socket)
	}
	port := 0
	if o.Port != "" {
		n, err := strconv.ParseUint(o.Port, 10, 16)
		if err != nil || n == 0 {
			return nil, &criucli.UsageError{Problem: fmt.Sprintf("--port %q", o.Port), Hint: "a port is a number from 1 to 65535"}
		}
		port = int(n)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(o.Address, strconv.Itoa(port)))
	if err != nil {
		return nil, err // not a nil listener
	}
	return l, nil
}

// An inherited listener gives one connection, and ends with it.
type inherited struct {
	conn net.Conn
	mu   sync.Mutex
	gave bool // under mu
	once sync.Once
	over chan struct{}
}

// inherit is a listener that gives the connection on a descriptor.
func inherit(fd int) (net.Listener, error) {
	f := os.NewFile(uintptr(fd), "--ps-socket")
	if f == nil {
		return nil, fmt.Errorf("--ps-socket %d: no descriptor", fd)
	}
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("--ps-socket %d: %w", fd, err)
	}
	return &inherited{conn: conn, over: make(chan struct{})}, nil
}

// Accept gives the connection, and after that waits until it is closed.
func (l *inherited) Accept() (net.Conn, error) {
	l.mu.Lock()
	gave := l.gave
	l.gave = true
	l.mu.Unlock()
	if !gave {
		return &inheritedConn{l.conn, l}, nil
	}
	<-l.over
	return nil, net.ErrClosed
}

// Close ends the waiting; the connection is closed by who has it.
func (l *inherited) Close() error {
	l.once.Do(func() { close(l.over) })
	return nil
}

// Addr is the connection's own address.
func (l *inherited) Addr() net.Addr { return l.conn.LocalAddr() }

type inheritedConn struct {
	net.Conn
	l *inherited
}

func (c *inheritedConn) Close() error { return errors.Join(c.Conn.Close(), c.l.Close()) }
