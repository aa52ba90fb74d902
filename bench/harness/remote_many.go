package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/workload"
)

// manyRestores is how many programs come back at once.
const manyRestores = 32

// remoteMany restores one image many times at once.
func remoteMany(ctx context.Context, env *Env) (*Result, error) {
	// Asleep, for 32 that read the clock would be what the processors do.
	program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: env.mib(64), Mappings: 20, Touches: -1, Asleep: true})
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
	rate := func(name string, take func(ctx context.Context) (time.Duration, error)) *turn {
		return &turn{series: result.series(name, "B/s"), sample: func(ctx context.Context) (float64, error) {
			took, err := take(ctx)
			return stored / took.Seconds(), err
		}}
	}
	ours := rate("ours-32-served", func(ctx context.Context) (time.Duration, error) { return env.restoreServed(ctx, subject, img) })
	local := rate("ours-32", func(ctx context.Context) (time.Duration, error) { return env.restoreMany(ctx, img.dir) })
	kept := rate("plain-tcp-copy", func(ctx context.Context) (time.Duration, error) { return env.copyMany(ctx, frames, true) })
	dropped := rate("plain-tcp-copy-dropped", func(ctx context.Context) (time.Duration, error) { return env.copyMany(ctx, frames, false) })
	env.rounds(ctx, env.runs(3), ours, local, kept, dropped)
	result.Notes = append(result.Notes,
		"bytes are those of the image, as they are stored; ours-32: the same restores from a directory, without a server",
		"plain-tcp-copy: each of 32 processes keeps what it gets in fresh memory; -dropped: it does not")
	return result.divide(ours.series, kept.series), nil
}

// restoreServed is restoreMany from one page server.
func (e *Env) restoreServed(ctx context.Context, s *served, img *image) (took time.Duration, err error) {
	helpers, err := s.Prepare(ctx, img.dir)
	defer func() {
		for _, h := range helpers {
			err = errors.Join(err, h.Stop())
		}
	}()
	if err != nil {
		return 0, err
	}
	return e.restoreMany(ctx, "tcp://"+s.address+"/"+filepath.Base(img.dir))
}

// restoreMany restores the image at a place, a directory or an address, many
// times, and gives the time until the last one is resident.
func (e *Env) restoreMany(ctx context.Context, place string) (took time.Duration, err error) {
	dir := e.path("stats")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	stats := func(i int) string { return filepath.Join(dir, strconv.Itoa(i)) }
	begin := time.Now()
	all, err := copies(manyRestores, func(i int) (*copied, error) {
		return e.copy(ctx, place, "--stats", stats(i))
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

// copyMany has a file copied over many connections at once, by processes in C,
// and gives the time that takes. The receivers keep what they get, or drop it.
func (e *Env) copyMany(ctx context.Context, path string, keep bool) (time.Duration, error) {
	bin, err := e.builder.C(ctx, "copy")
	if err != nil {
		return 0, err
	}
	args := []string{"-n", strconv.Itoa(manyRestores)}
	if keep {
		args = append(args, "-k")
	}
	text, err := exec.CommandContext(ctx, bin, append(args, path)...).Output()
	if err != nil {
		return 0, fmt.Errorf("plain copy in C: %w", err)
	}
	line, ok := lineOf(string(text), "copied")
	if !ok {
		return 0, fmt.Errorf("plain copy in C: it did not say how long it took: %q", text)
	}
	return time.Duration(numbers(line)["took_ns"]), nil
}
