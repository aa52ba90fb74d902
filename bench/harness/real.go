package harness

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/workload"
)

// A trial is one way to interrupt a program.
type trial struct {
	name string
	// again says when the restored process is checkpointed once more.
	again again
	eager bool
}

type again int

const (
	never      again = iota
	atOnce           // while most of its memory is still missing
	onResident       // once all of it is there
)

var trials = []trial{
	{name: "restored lazily"},
	{name: "restored eagerly", eager: true},
	{name: "checkpointed again while lazy", again: atOnce},
	{name: "checkpointed again when resident", again: onResident},
}

// RealPrograms are the names that Real takes.
func RealPrograms() []string {
	return append([]string{"threads", "gcload", "numpy", "lammps"}, workload.Kernels()...)
}

// Real has real programs interrupted in the middle of their work, in several
// ways, and compares what they end with to an uninterrupted run. No names are
// all programs. It says what it did on w; the first difference is an error.
func (e *Env) Real(ctx context.Context, w io.Writer, names []string) error {
	if len(names) == 0 {
		names = RealPrograms()
	}
	for _, name := range names {
		program, err := e.realProgram(ctx, name)
		if err != nil {
			return err
		}
		want, err := e.uninterrupted(ctx, program)
		if err != nil {
			return err
		}
		for _, trial := range trials {
			began := time.Now()
			if err := e.interrupt(ctx, program, trial, want); err != nil {
				return fmt.Errorf("%s, %s: %w", name, trial.name, err)
			}
			fmt.Fprintf(w, "ok  %-8s %-34s %s\n", name, trial.name, showTime(time.Since(began)))
			if err := e.Clear(); err != nil {
				return err
			}
		}
	}
	return nil
}

// realProgram makes a program that takes some seconds.
func (e *Env) realProgram(ctx context.Context, name string) (*workload.Program, error) {
	switch name {
	case "threads":
		return e.builder.Threads(ctx, 80)
	case "gcload":
		return e.builder.GCLoad(ctx, e.mib(256), 200)
	case "numpy":
		return e.builder.Arrays(ctx, e.mib(1024), 60)
	case "lammps":
		return e.builder.LAMMPS(ctx, workload.LAMMPSOptions{Steps: 80, Every: 2})
	case "stencil", "gups", "stream", "solver":
		return e.builder.Kernel(ctx, name, e.mib(256), 40)
	default:
		return nil, fmt.Errorf("no program is called %q: %v", name, RealPrograms())
	}
}

func (e *Env) uninterrupted(ctx context.Context, program *workload.Program) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	process, err := e.start(ctx, program)
	if err != nil {
		return nil, err
	}
	select {
	case <-process.Ended():
	case <-ctx.Done():
		return nil, fmt.Errorf("%s does not end: %w", program.Name, ctx.Err())
	}
	result := process.Result()
	if code := process.ExitCode(); code != 0 || len(result) == 0 {
		return nil, fmt.Errorf("%s: it ended with %d and the result %q", program.Name, code, result)
	}
	return result, e.stop(process)
}

// interrupt runs a program with a checkpoint, or two, in the middle.
func (e *Env) interrupt(ctx context.Context, program *workload.Program, t trial, want []string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	stats := e.path("stats")
	subject := &ours{bin: e.opts.Lazyrestore, eager: t.eager, stats: stats}
	img, err := e.hold(ctx, subject, program)
	if err != nil {
		return err
	}
	restored, err := e.restore(ctx, subject, img)
	if err != nil {
		return err
	}
	if t.again == onResident {
		if err := restored.awaitFile(ctx, stats); err != nil {
			return err
		}
	}
	if t.again != never {
		if img, err = e.holdAgain(ctx, subject, restored); err != nil {
			return err
		}
		if restored, err = e.restore(ctx, subject, img); err != nil {
			return err
		}
	}
	if err := restored.restore.wait(ctx); err != nil {
		return err
	}
	if got := img.process.Result(); !slices.Equal(got, want) {
		return fmt.Errorf("it ended with %q, an uninterrupted run with %q", got, want)
	}
	return restored.Stop()
}

// holdAgain checkpoints a restored process, which ends.
func (e *Env) holdAgain(ctx context.Context, subject Subject, restored *Restored) (*image, error) {
	process := restored.image.process
	img := &image{dir: e.path(subject.Name() + ".image"), process: process}
	var err error
	if img.taken, err = e.checkpoint(ctx, subject, process.Pid, img.dir, false); err != nil {
		return nil, err
	}
	select {
	case <-restored.restore.ended: // with the status of a killed program
	case <-time.After(patience):
		return nil, fmt.Errorf("%s: it goes on after its program's checkpoint", restored.restore.name)
	}
	if err := restored.Stop(); err != nil {
		return nil, err
	}
	return img, process.KeepFiles()
}

// awaitFile waits until a file is there and not empty.
func (r *Restored) awaitFile(ctx context.Context, file string) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if info, err := os.Stat(file); err == nil && info.Size() > 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-r.restore.ended:
			return fmt.Errorf("%s: it ended before all was resident: %w: %s", r.restore.name, r.restore.err, r.restore.said)
		case <-ctx.Done():
			return fmt.Errorf("%s: wait for all to be resident: %w", r.restore.name, ctx.Err())
		}
	}
}
