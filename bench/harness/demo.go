package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/workload"
)

const (
	demoMiB   = 1024
	demoSteps = 100
)

// A demo shows one program to people.
type demo struct {
	env     *Env
	w       io.Writer
	program *workload.Program
	// cold is how long the program took from its start to the checkpoint,
	// eager and lazy to its first instruction after a restore.
	cold, eager, lazy time.Duration
}

// Demo stops a program with a gibibyte of state in the middle of its work,
// brings it back, eagerly and lazily, sees it go on and end with the result of
// an uninterrupted run, and says what each way took.
func (e *Env) Demo(ctx context.Context, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	d := &demo{env: e, w: w}
	var err error
	d.program, err = e.builder.Arrays(ctx, e.mib(demoMiB), demoSteps)
	if missing := (*workload.MissingError)(nil); errors.As(err, &missing) {
		d.say("%v; a Go program takes its place", err)
		d.program, err = e.builder.GCLoad(ctx, e.mib(demoMiB), demoSteps)
	}
	if err != nil {
		return err
	}
	img, err := d.checkpoint(ctx)
	if err != nil {
		return err
	}
	if err := d.restoreEagerly(ctx, img); err != nil {
		return err
	}
	result, err := d.resume(ctx, img)
	if err != nil {
		return err
	}
	if err := d.compare(ctx, result); err != nil {
		return err
	}
	d.table()
	return nil
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.w, format+"\n", args...) }

// checkpoint starts the program and takes it away in the middle.
func (d *demo) checkpoint(ctx context.Context) (*image, error) {
	var argv []string
	for _, arg := range d.program.Args {
		if filepath.IsAbs(arg) {
			arg = filepath.Base(arg)
		}
		argv = append(argv, arg)
	}
	d.say("$ %s", strings.Join(argv, " "))
	process, err := d.env.start(ctx, d.program)
	if err != nil {
		return nil, err
	}
	d.cold = time.Since(process.Started)
	d.say("  pid %d is at %q after %s", process.Pid, lastLine(process), showTime(d.cold))
	img := &image{dir: d.env.path("image"), process: process}
	subject := &ours{bin: d.env.opts.Lazyrestore}
	d.say("$ lazyrestore checkpoint --codec lz4 -D image %d", process.Pid)
	img.taken, err = d.env.checkpoint(ctx, subject, process.Pid, img.dir, false)
	if err != nil {
		return nil, err
	}
	<-process.Ended()
	size, err := sizeOf(img.dir)
	if err != nil {
		return nil, err
	}
	d.say("  done in %s: an image of %s, and pid %d is gone, at %q",
		showTime(img.taken.wall), show(float64(size), "B"), process.Pid, lastLine(process))
	return img, process.KeepFiles()
}

func (d *demo) restoreEagerly(ctx context.Context, img *image) error {
	d.say("$ lazyrestore restore --eager image")
	restored, err := d.env.restore(ctx, &ours{bin: d.env.opts.Lazyrestore, eager: true}, img)
	if err != nil {
		return err
	}
	d.eager = restored.TTFI
	d.say("  runs after %s, with all of its memory; ended again", showTime(d.eager))
	return restored.Stop()
}

// resume restores lazily and lets the program come to its end.
func (d *demo) resume(ctx context.Context, img *image) ([]string, error) {
	d.say("$ lazyrestore restore image")
	restored, err := d.env.restore(ctx, &ours{bin: d.env.opts.Lazyrestore}, img)
	if err != nil {
		return nil, err
	}
	d.lazy = restored.TTFI
	d.say("  runs after %s, with none of its memory; the rest comes as it is touched", showTime(d.lazy))
	before := strings.Count(img.process.Output(), "\n")
	if err := restored.restore.wait(ctx); err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSpace(img.process.Output()), "\n")
	if before < len(lines) {
		d.say("  it goes on where it was: %q ... %q", lines[before], lines[len(lines)-1])
	}
	return img.process.Result(), restored.Stop()
}

// compare runs the program once more, uninterrupted.
func (d *demo) compare(ctx context.Context, result []string) error {
	process, err := d.env.start(ctx, d.program)
	if err != nil {
		return err
	}
	select {
	case <-process.Ended():
	case <-ctx.Done():
		return ctx.Err()
	}
	want := process.Result()
	if len(want) == 0 || !slices.Equal(result, want) {
		return fmt.Errorf("the restored run ended with %q, an uninterrupted one with %q", result, want)
	}
	d.say("  an uninterrupted run ends with the same result")
	return nil
}

func (d *demo) table() {
	d.say("\nTime to first instruction (%s, %d MiB)", d.program.Name, d.env.mib(demoMiB))
	rows := []struct {
		name string
		took time.Duration
	}{{"cold start, to where it was", d.cold}, {"eager restore", d.eager}, {"lazy restore", d.lazy}}
	for _, row := range rows {
		if row.took > 0 {
			d.say("  %-28s %10s %8.0f x", row.name, showTime(row.took), float64(row.took)/float64(d.lazy))
		}
	}
}

func lastLine(process *workload.Process) string {
	lines := strings.Split(strings.TrimSpace(process.Output()), "\n")
	return lines[len(lines)-1]
}

// sizeOf is the size of all files in a directory.
func sizeOf(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("size of %s: %w", filepath.Base(dir), err)
	}
	return sum, nil
}
