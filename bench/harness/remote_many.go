package harness

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/workload"
)

// manyRestores is how many programs come back at once.
const manyRestores = 32

// remoteMany restores one image many times at once.
func remoteMany(ctx context.Context, env *Env) (*Result, error) {
	program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: env.mib(64), Mappings: 20, Touches: -1})
	if err != nil {
		return nil, err
	}
	subject := &served{ours: ours{bin: env.opts.Lazyrestore}}
	img, err := env.hold(ctx, subject, program)
	if err != nil {
		return nil, err
	}
	frames := filepath.Join(img.dir, "pages.lz4")
	info, err := os.Stat(frames)
	if err != nil {
		return nil, err
	}
	stored := float64(manyRestores * info.Size())
	result := &Result{}
	ours, plain := result.series("ours-32-served", "B/s"), result.series("plain-tcp-copy", "B/s")
	env.rounds(ctx, env.runs(3),
		&turn{series: ours, sample: func(ctx context.Context) (float64, error) {
			took, err := env.restoreMany(ctx, subject, img)
			return stored / took.Seconds(), err
		}},
		&turn{series: plain, sample: func(ctx context.Context) (float64, error) {
			took, err := copyMany(frames)
			return stored / took.Seconds(), err
		}})
	return result.divide(ours, plain), nil
}

// restoreMany restores an image many times from one server, and gives the time
// until the last one is resident.
func (e *Env) restoreMany(ctx context.Context, s *served, img *image) (took time.Duration, err error) {
	helpers, err := s.Prepare(ctx, img.dir)
	defer func() {
		for _, h := range helpers {
			err = errors.Join(err, h.Stop())
		}
	}()
	if err != nil {
		return 0, err
	}
	dir := e.path("stats")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	stats := func(i int) string { return filepath.Join(dir, strconv.Itoa(i)) }
	begin := time.Now()
	all, err := copies(manyRestores, true, func(i int) (*copied, error) {
		return e.copy(ctx, "tcp://"+s.address+"/"+filepath.Base(img.dir), "--stats", stats(i))
	})
	if err != nil {
		return 0, err
	}
	for i := range all {
		if err = untilThere(ctx, stats(i)); err != nil {
			break
		}
	}
	took = time.Since(begin)
	return took, errors.Join(err, endAll(all))
}

// untilThere waits until a file is there.
func untilThere(ctx context.Context, path string) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// copyMany copies a file over many connections, all at once.
func copyMany(path string) (time.Duration, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	errs := make(chan error, 2*manyRestores)
	begin := time.Now()
	for range manyRestores {
		go func() {
			conn, err := net.Dial("tcp", ln.Addr().String())
			if err == nil {
				var f *os.File
				if f, err = os.Open(path); err == nil {
					_, err = io.Copy(conn, f) // sendfile
					f.Close()
				}
				conn.Close()
			}
			errs <- err
		}()
		conn, err := ln.Accept()
		if err != nil {
			return 0, err
		}
		go func() {
			_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, make([]byte, 256<<10))
			conn.Close()
			errs <- err
		}()
	}
	var failed []error
	for range 2 * manyRestores {
		failed = append(failed, <-errs)
	}
	return time.Since(begin), errors.Join(failed...)
}
