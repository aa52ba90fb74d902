package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/pager"
	"github.com/lazyrestore/lazyrestore/pageserver/client"
)

// remote are the flags of the verbs that read images, which may be on servers.
type remote struct {
	cacert, cert, key string
	cache             string
	cacheSize         int
}

// tlsFlags are those of every verb that may have to speak to a server.
func (r *remote) tlsFlags() []cli.Flag {
	return []cli.Flag{
		{Name: "tls-cacert", Arg: "FILE", Value: cli.String(&r.cacert), Operand: cli.OperandFile, Usage: "The authority that a server of tls:// has its certificate from, in PEM"},
		{Name: "tls-cert", Arg: "FILE", Value: cli.String(&r.cert), Operand: cli.OperandFile, Usage: "Our certificate for such a server, in PEM"},
		{Name: "tls-key", Arg: "FILE", Value: cli.String(&r.key), Operand: cli.OperandFile, Usage: "The key of that certificate, in PEM"},
	}
}

// cacheFlags are those of verbs that read pages.
func (r *remote) cacheFlags() []cli.Flag {
	return []cli.Flag{
		{Name: "cache", Arg: "DIR", Value: cli.String(&r.cache), Operand: cli.OperandDirectory, Usage: "Keep what servers give in DIR, for all later restores on this machine"},
		{Name: "cache-size", Arg: "SIZE", Value: cli.Size(&r.cacheSize), Usage: "How large that directory grows; 16 GiB if not given"},
	}
}

// source is the flags as options.
func (r *remote) source() lazyrestore.SourceOptions {
	return lazyrestore.SourceOptions{Dial: r.dial, Cache: r.cache, CacheSize: int64(r.cacheSize)}
}

func (r *remote) check() error {
	switch {
	case (r.cert == "") != (r.key == ""), (r.cert == "") != (r.cacert == ""):
		return &cli.UsageError{Problem: "--tls-cacert, --tls-cert and --tls-key belong together", Hint: "give all three, or none"}
	case r.cacheSize != 0 && r.cache == "":
		return &cli.UsageError{Problem: "--cache-size without --cache", Hint: "name the directory: --cache DIR"}
	}
	return nil
}

// dial connects to servers, as far as that is possible without the packages
// for names of hosts and for TLS: each restore would pay for linking them. What
// is left to do a helper does, lazyrestore-connect.
func (r *remote) dial(ctx context.Context, s client.Server) (client.Conn, error) {
	if client.Light(s) {
		return client.Dial(ctx, s)
	}
	if s.Network == "tls" && r.cert == "" {
		return nil, &cli.UsageError{Problem: "tls:// without certificates", Hint: "give --tls-cacert, --tls-cert and --tls-key"}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "helper")
	defer theirs.Close()
	cmd, err := r.helper(s)
	if err != nil {
		return nil, errors.Join(err, unix.Close(pair[0]))
	}
	var said strings.Builder
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = &said
	if err := pager.WithOwnSlack(cmd.Start); err != nil {
		return nil, errors.Join(helperError(cmd.Path, err), unix.Close(pair[0]))
	}
	_ = theirs.Close()
	ended := make(chan struct{})
	go func() { // a relay ends with its connection
		_ = cmd.Wait()
		close(ended)
	}()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	conn, err := receive(pair[0], s)
	if !stop() {
		<-ended
		err = context.Cause(ctx)
	}
	if err == nil {
		return conn, nil
	}
	if conn != nil {
		_ = conn.Close()
	}
	if errors.Is(err, errNoWord) {
		<-ended
		err = errors.New(strings.TrimSpace(said.String()))
	}
	return nil, err
}

// helper is the command that connects to s.
func (r *remote) helper(s client.Server) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := []string{"--fd", "3"}
	for _, f := range [][2]string{{"--tls-cacert", r.cacert}, {"--tls-cert", r.cert}, {"--tls-key", r.key}} {
		if f[1] != "" {
			args = append(args, f[0], f[1])
		}
	}
	return exec.Command(filepath.Join(filepath.Dir(self), "lazyrestore-connect"), append(args, s.String())...), nil
}

func helperError(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("names of hosts and TLS take the executable %s, which is not installed; servers at IP addresses are reached without it", path)
	}
	return err
}

var errNoWord = errors.New("the helper has ended without a word")

// receive takes the connection from the helper: either that, or the word that
// the helper passes on what is written to fd, and back. It takes fd over.
func receive(fd int, s client.Server) (client.Conn, error) {
	word, rights := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	var n, m int
	var err error
	for {
		n, m, _, _, err = unix.Recvmsg(fd, word, rights, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err == nil && n == 0 {
		err = errNoWord
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	if messages, err := unix.ParseSocketControlMessage(rights[:m]); err == nil && len(messages) == 1 {
		if fds, err := unix.ParseUnixRights(&messages[0]); err == nil && len(fds) == 1 {
			_ = unix.Close(fd)
			fd = fds[0]
		}
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), s.String()), nil
}

// listTimeout bounds how long a list of images may take.
const listTimeout = 30 * time.Second
