package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/lazyrestore/lazyrestore/cmd/internal/criucli"
	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/lazypages"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pagetls"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pagexfer"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/pageserver/client"
	"github.com/lazyrestore/lazyrestore/pageserver/tlsfiles"
)

// connectTime is how long making a connection may take.
const connectTime = 30 * time.Second

// openPages fills in where the pages come from: a page server, an image of
// ours, or, if neither is asked for nor there, the set's own files. Of those two nothing
// is checked: a digest that is asked for is one of an image.
func openPages(ctx context.Context, o *criucli.Options, opts *lazypages.Options, log *slog.Logger) (closer func(), err error) {
	nothing := func() {}
	name, said := o.Own["image"]
	digest, pinned := o.Own["image-digest"]
	if pinned {
		if digest, err = image.ParseDigest(digest); err != nil {
			return nil, &criucli.UsageError{Problem: fmt.Sprintf("--image-digest %q", o.Own["image-digest"]), Hint: "a digest is 64 hex digits, with sha256: before them or without"}
		}
	}
	if o.PageServer {
		switch {
		case said:
			return nil, &criucli.UsageError{Problem: "--image and --page-server", Hint: "pages come from one of them"}
		case pinned:
			return nil, &criucli.UsageError{Problem: "--image-digest and --page-server", Hint: "what a page server gives has no digest"}
		}
		opts.Server, err = pageServer(o)
		return nothing, err
	}
	if !said {
		_, err := os.Stat(filepath.Join(o.ImagesDir, image.ManifestObject))
		switch {
		case err == nil:
			name = o.ImagesDir
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		case pinned:
			return nil, &criucli.UsageError{Problem: "--image-digest, and no image in " + o.ImagesDir, Hint: "CRIU's own files have no digest; --image names an image elsewhere"}
		default:
			return nothing, nil
		}
	}
	src, err := lazyrestore.OpenSource(ctx, name, lazyrestore.SourceOptions{Dial: imageDialer(o, log)}, log)
	if err != nil {
		return nil, err
	}
	if opts.Image, err = image.Open(ctx, src, image.OpenOptions{Digest: digest}); err != nil {
		return nil, errors.Join(err, src.Close())
	}
	if _, native := opts.Image.Manifest().Objects[image.ProcessObject]; native {
		return nil, errors.Join(fmt.Errorf("%s is no image of CRIU's: lazyrestore restore restores it", name), src.Close())
	}
	return func() { src.Close() }, nil
}

// pageServer is CRIU's page server that the command line names.
func pageServer(o *criucli.Options) (*lazypages.Server, error) {
	s := new(lazypages.Server)
	if name, said := o.Own["dialect"]; said {
		d, err := pagexfer.ParseDialect(name)
		if err != nil {
			return nil, err
		}
		s.Dialect = d
	}
	if o.Socket < 0 && (o.Port == "" || o.Port == "0") {
		return nil, &criucli.UsageError{Problem: "--page-server without a port", Hint: "give --port"}
	}
	host := o.Address
	if host == "" {
		host = "localhost"
	}
	var secure *tls.Config
	if o.TLS {
		var err error
		files := pagetls.Options{CACert: o.CACert, CACRL: o.CACRL, Cert: o.Cert, Key: o.Key, NoName: o.NoCNVerify}
		if secure, err = files.Client(host); err != nil {
			return nil, err
		}
	}
	s.Address = net.JoinHostPort(host, o.Port)
	dial := func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{Timeout: connectTime}).DialContext(ctx, "tcp", s.Address)
	}
	if o.Socket >= 0 {
		s.Address, dial = "", inherited(o.Socket)
	}
	s.Dial = func(ctx context.Context) (net.Conn, error) {
		conn, err := dial(ctx)
		if err != nil || secure == nil {
			return conn, err
		}
		return handshake(ctx, conn, secure)
	}
	return s, nil
}

// inherited takes the connection that was handed down (--ps-socket), once: from
// then on its number may be something else's, a userfaultfd's even, the
// closing of which would make zeros of memory.
func inherited(fd int) func(context.Context) (net.Conn, error) {
	taken := false
	return func(context.Context) (net.Conn, error) {
		if taken {
			return nil, fmt.Errorf("--ps-socket %d: the connection is lost, and there is no other", fd)
		}
		taken = true
		f := os.NewFile(uintptr(fd), "--ps-socket")
		if f == nil {
			return nil, fmt.Errorf("--ps-socket %d: no descriptor", fd)
		}
		defer f.Close()
		return net.FileConn(f)
	}
}

// handshake makes a connection a secure one.
func handshake(ctx context.Context, conn net.Conn, config *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	c := tls.Client(conn, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("TLS: %w", err), conn.Close())
	}
	return c, nil
}

// imageDialer connects to our own page servers, by name and with TLS too.
func imageDialer(o *criucli.Options, log *slog.Logger) client.Dialer {
	return func(ctx context.Context, s client.Server) (client.Conn, error) {
		if s.Network == "unix" {
			return client.Dial(ctx, s)
		}
		conn, err := (&net.Dialer{Timeout: connectTime}).DialContext(ctx, "tcp", net.JoinHostPort(s.Host, strconv.Itoa(int(s.Port))))
		if err != nil || s.Network == "tcp" {
			return conn, err
		}
		pair, err := tlsfiles.Open(tlsfiles.Files{CACert: o.CACert, Cert: o.Cert, Key: o.Key}, log)
		if err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		return handshake(ctx, conn, pair.Client(s.Host))
	}
}
