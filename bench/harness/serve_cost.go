package harness

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"time"
)

func serveFigures() []*Figure {
	return []*Figure{
		{
			Name: "serve-cpu", Title: "processor time of the page server for a byte sent without TLS, over sendfile of the same file in C",
			Bound: 2, Aim: 1.2, Limit: 10 * time.Minute, measure: serveProcessor,
		},
		{
			Name: "serve-memory", Title: "largest resident memory of the page server with 1,000 idle and 32 busy clients",
			Bound: 256 << 20, Aim: 64 << 20, Absolute: true, Limit: 10 * time.Minute, measure: serveMemory,
		},
	}
}

// serveProcessor ships the same file to one client, by our server and by a loop
// around sendfile(2).
func serveProcessor(ctx context.Context, env *Env) (*Result, error) {
	size := int64(env.mib(1024)) << 20
	server, err := env.servePages(ctx, size)
	if err != nil {
		return nil, err
	}
	bare, err := env.plainSendfile(ctx, server.pages)
	if err != nil {
		return nil, err
	}
	result := &Result{}
	ours, plain := result.measure("lazyrestore-serve", "cpu", "ns/op"), result.measure("sendfile", "cpu", "ns/op")
	client, err := newPageClient(ctx, server.address, 1)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	drop := make([]byte, 256<<10)
	env.rounds(ctx, env.runs(9),
		&turn{series: ours, sample: func(context.Context) (float64, error) {
			return processorTimeOf(server.cmd.Process.Pid, func() error { return client.readAll(size) })
		}},
		&turn{series: plain, sample: func(ctx context.Context) (float64, error) {
			return processorTimeOf(bare.cmd.Process.Pid, func() error {
				nc, err := new(net.Dialer).DialContext(ctx, "tcp", bare.address)
				if err != nil {
					return err
				}
				defer nc.Close()
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{nc}, drop)
				if err == nil && n != size {
					err = fmt.Errorf("%d bytes of %d", n, size)
				}
				return err
			})
		}})
	result.Notes = append(result.Notes, fmt.Sprintf("for %d MiB, one client that drops them", size>>20))
	return result.divide(ours, plain), nil
}

// processorTimeOf is what a process uses while something is done.
func processorTimeOf(pid int, do func() error) (float64, error) {
	before, err := costOf(pid)
	if err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	after, err := costOf(pid)
	return float64((after.cpu - before.cpu).Nanoseconds()), err
}

// A plainServer is workload/c/sendfile.c.
type plainServer struct {
	*command
	address string
}

func (e *Env) plainSendfile(ctx context.Context, file string) (*plainServer, error) {
	bin, err := e.builder.C(ctx, "sendfile")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, bin, file)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s := new(plainServer)
	if s.command, err = launch("sendfile", cmd); err != nil {
		return nil, err
	}
	e.keep(s.command)
	port := 0
	if _, err := fmt.Fscanf(bufio.NewReader(stdout), "port %d\n", &port); err != nil {
		return nil, fmt.Errorf("sendfile: %w: %s", err, s.said)
	}
	s.address = fmt.Sprintf("127.0.0.1:%d", port)
	return s, nil
}

// serveMemory has clients come, stay idle, and be busy.
func serveMemory(ctx context.Context, env *Env) (*Result, error) {
	const idle, busy = 1000, 32
	server, err := env.servePages(ctx, int64(env.mib(64))<<20)
	if err != nil {
		return nil, err
	}
	result := &Result{}
	atRest, atWork := result.measure("lazyrestore-serve", "idle", "B"), result.measure("lazyrestore-serve", "busy", "B")
	var clients []*pageClient
	defer func() {
		for _, c := range clients {
			c.Close()
		}
	}()
	for i := range idle + busy {
		c, err := newPageClient(ctx, server.address, i)
		if err != nil {
			return nil, fmt.Errorf("client %d: %w", i, err)
		}
		clients = append(clients, c)
	}
	rest, err := costOf(server.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	atRest.add(float64(rest.peak))
	ended := make(chan error, busy)
	for _, c := range clients[idle:] {
		go func() {
			for range env.runs(20) {
				if err := c.readAll(server.size); err != nil {
					ended <- err
					return
				}
			}
			ended <- nil
		}()
	}
	for range busy {
		err = errors.Join(err, <-ended)
	}
	if err != nil {
		return nil, err
	}
	work, err := costOf(server.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	atWork.add(float64(work.peak))
	result.Value, result.Low, result.High = float64(work.peak), float64(work.peak), float64(work.peak)
	return result, nil
}
