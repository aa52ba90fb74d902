package harness

import (
	"context"
	"os/exec"
	"path/filepath"
	"time"
)

// served is lazyrestore with its image at a page server on this machine, over
// loopback or over a link that is slower.
type served struct {
	ours
	link    *link // nil: loopback as it is
	address string
}

// slowLink is the network of a small cluster.
var slowLink = link{name: "1Gbit", bytesSecond: 1e9 / 8, delay: 200 * time.Microsecond}

func (s *served) Name() string {
	if s.link != nil {
		return s.ours.Name() + "-" + s.link.name
	}
	return s.ours.Name() + "-served"
}

// Prepare starts the server, and the link.
func (s *served) Prepare(ctx context.Context, dir string) ([]*command, error) {
	if _, err := s.ours.Prepare(ctx, dir); err != nil {
		return nil, err
	}
	server, address, err := serveDirectory(ctx, s.bin, dir)
	if err != nil {
		return nil, err
	}
	helpers := []*command{server}
	s.address = address
	if s.link == nil {
		return helpers, nil
	}
	listener, err := s.link.listen(s.address)
	if err != nil {
		return helpers, err
	}
	s.address = listener.Addr().String()
	go func() { // the link is there as long as the server
		<-server.ended
		listener.Close()
	}()
	return helpers, nil
}

// Restore names the image as the server does.
func (s *served) Restore(ctx context.Context, dir string) *exec.Cmd {
	cmd := s.ours.Restore(ctx, dir)
	cmd.Args[len(cmd.Args)-1] = "tcp://" + s.address + "/" + filepath.Base(dir)
	return cmd
}
