package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/workload"
	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/convert"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	ourimage "github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
)

// criuOurs is CRIU's restore with our daemon in the place of criu lazy-pages:
// the same image set, the same restore, other pages.
type criuOurs struct {
	criu
	bin string
	// compressed has the pages come from an image of ours, made of the set.
	compressed bool
	once       sync.Once // guards the making of it
	made       error
}

func (c *criuOurs) Name() string {
	if c.compressed {
		return "criu-ours-lz4"
	}
	return "criu-ours"
}

// dir is where the restore finds its image set.
func (c *criuOurs) dir(dir string) string {
	if c.compressed {
		return dir + ".lz4" // beside the set: what lies in that is converted
	}
	return dir
}

// Prepare starts our daemon and waits until it listens.
func (c *criuOurs) Prepare(ctx context.Context, dir string) ([]*command, error) {
	if c.compressed {
		c.once.Do(func() { c.made = compress(ctx, dir, c.dir(dir)) })
		if c.made != nil {
			return nil, c.made
		}
	}
	ready, status, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("pipe for the daemon's status: %w", err)
	}
	defer ready.Close()
	// The keeper outlives a daemon that is killed, for a moment; it shall not
	// run beside what is measured next.
	leaves, left, err := os.Pipe()
	if err != nil {
		status.Close()
		return nil, fmt.Errorf("pipe for the daemon's keeper: %w", err)
	}
	cmd := exec.CommandContext(ctx, c.bin, "lazy-pages", "-v1", "-o", "lazy-pages.log", "-D", c.dir(dir), "--status-fd", "3")
	cmd.ExtraFiles = []*os.File{status, left}
	daemon, err := launch("lazyrestore lazy-pages", cmd)
	status.Close()
	left.Close()
	if err != nil {
		leaves.Close()
		return nil, err
	}
	daemon.leaves = leaves
	helpers := []*command{daemon}
	if err := ready.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return helpers, fmt.Errorf("wait for lazyrestore lazy-pages: %w", err)
	}
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		return helpers, fmt.Errorf("wait for lazyrestore lazy-pages: %w: %s", err, daemon.said)
	}
	return helpers, nil
}

func (c *criuOurs) Restore(ctx context.Context, dir string) *exec.Cmd {
	return c.criu.Restore(ctx, c.dir(dir))
}

// compress makes an image of ours of a set.
func compress(ctx context.Context, from, to string) error {
	set, err := imgfile.Open(from)
	if err != nil {
		return err
	}
	st, err := store.CreateDir(to)
	if err != nil {
		return err
	}
	w, err := ourimage.NewWriter(st, ourimage.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}})
	if err != nil {
		return errors.Join(err, st.Abort())
	}
	m, err := convert.Import(ctx, set, w)
	if err == nil {
		_, err = w.Finish(ctx, m)
	}
	if err != nil {
		w.Abort()
		return errors.Join(err, st.Abort())
	}
	return st.Commit()
}

func criuDaemonFigures() []*Figure {
	return []*Figure{
		{
			Name: "criu-touches", Title: "mean of 2,000 random touches with the fill, restored by CRIU: our daemon over CRIU's",
			Bound: 0.5, Aim: 0.25, Limit: 15 * time.Minute, measure: criuTouches("mean_ns", criuRuns),
		},
		{
			Name: "criu-touches-p999", Title: "99.9th percentile of the same",
			Bound: 0.5, Aim: 0.25, Limit: 15 * time.Minute, measure: criuTouches("p999_ns", criuManyRuns),
		},
		{
			Name: "criu-resident", Title: "rate at which all is resident, restored by CRIU: our daemon over CRIU's",
			Bound: 1.5, Aim: 3, Higher: true, Limit: 15 * time.Minute, measure: criuResident(false),
		},
		{
			Name: "criu-resident-lz4", Title: "the same, ours from an image in LZ4 over CRIU's from its raw one",
			Bound: 1, Aim: 2, Higher: true, Limit: 15 * time.Minute, measure: criuResident(true),
		},
		{
			Name: "criu-ttfi", Title: "TTFI of criu restore --lazy-pages: with our daemon over with CRIU's",
			Bound: 1.05, Aim: 0.95, Limit: 15 * time.Minute, measure: criuTTFI,
		},
		{
			Name: "criu-memory", Title: "memory of our daemon, process of 4 GiB",
			Bound: 256 << 20, Aim: 64 << 20, Absolute: true, Limit: 15 * time.Minute, measure: criuMemory,
		},
	}
}

const (
	criuRuns      = 11 // of seven the median wandered by a fifth
	criuManyRuns  = 31 // of eleven the median wandered by more than there is to see
	criuMemoryMiB = 4096
)

// criuPair is CRIU's daemon and ours.
func (e *Env) criuPair(compressed bool) (theirs *criu, own *criuOurs, err error) {
	argv, err := findCRIU(e.opts.CRIU)
	if err != nil {
		return nil, nil, err
	}
	theirs = &criu{argv: argv, lazy: true}
	return theirs, &criuOurs{criu: *theirs, bin: e.opts.Lazyrestore, compressed: compressed}, nil
}

// A daemonSample is one of what a subject restores; first: none was taken before.
type daemonSample func(ctx context.Context, subject Subject, img *image, first bool) (float64, error)

// compareDaemons samples both in turns; the value is ours over theirs.
func (e *Env) compareDaemons(ctx context.Context, program *workload.Program, runs int, unit string, compressed bool, sample daemonSample) (*Result, error) {
	theirs, own, err := e.criuPair(compressed)
	if err != nil {
		return nil, err
	}
	result := &Result{}
	var turns []*turn
	for _, subject := range []Subject{theirs, own} {
		series := result.series(subject.Name(), unit)
		turns = append(turns, e.turnOf(ctx, subject, program, series, func(ctx context.Context, img *image) (float64, error) {
			return sample(ctx, subject, img, len(series.Values) == 0)
		}))
	}
	e.rounds(ctx, e.runs(runs), turns...)
	return result.divide(result.Series[1], result.Series[0]), nil
}

// criuTouches compares one number of the line that says what touches took.
func criuTouches(number string, runs int) func(context.Context, *Env) (*Result, error) {
	return func(ctx context.Context, env *Env) (*Result, error) {
		program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: env.mib(touchMiB), Touches: touchCount})
		if err != nil {
			return nil, err
		}
		return env.compareDaemons(ctx, program, runs, "ns/op", false,
			func(ctx context.Context, subject Subject, img *image, first bool) (float64, error) {
				restored, err := env.restore(ctx, subject, img)
				if err != nil {
					return 0, err
				}
				lines, err := restored.touch(ctx, "touches", first)
				return float64(lines[number]), errors.Join(err, restored.Stop())
			})
	}
}

// criuResident compares how fast all memory comes, from the first instruction
// to the last page touched.
func criuResident(compressed bool) func(context.Context, *Env) (*Result, error) {
	return func(ctx context.Context, env *Env) (*Result, error) {
		program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: env.mib(touchMiB), Touches: -1})
		if err != nil {
			return nil, err
		}
		return env.compareDaemons(ctx, program, criuRuns, "B/s", compressed, env.sweepRate)
	}
}

// criuMemory is the largest resident set of our daemon, once its process has
// touched everything.
func criuMemory(ctx context.Context, env *Env) (*Result, error) {
	program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: env.mib(criuMemoryMiB), Touches: touchCount})
	if err != nil {
		return nil, err
	}
	_, own, err := env.criuPair(false)
	if err != nil {
		return nil, err
	}
	result := &Result{}
	series := result.series(own.Name(), "B")
	env.rounds(ctx, min(env.runs(criuRuns), 3), env.turnOf(ctx, own, program, series,
		func(ctx context.Context, img *image) (float64, error) {
			restored, err := env.restore(ctx, own, img)
			if err != nil {
				return 0, err
			}
			_, err = restored.touch(ctx, "sweep", false)
			// The daemon may have left by itself by now.
			if err := errors.Join(err, restored.Stop()); err != nil {
				return 0, err
			}
			return peakOf(restored.helpers[0])
		}))
	result.Value, result.Low, result.High = series.Median(), series.Median(), series.Median()
	return result, nil
}

// peakOf is the largest resident set that a command has had, in bytes: never
// less than that of this process, which it was until it became the command.
func peakOf(c *command) (float64, error) {
	if c.cmd.ProcessState == nil {
		return 0, errors.New("it was not waited for")
	}
	usage, ok := c.cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return 0, errors.New("no resource usage")
	}
	return float64(usage.Maxrss << 10), nil
}
