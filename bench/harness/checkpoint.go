package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/workload"
)

func checkpointFigures() []*Figure {
	return []*Figure{
		{
			Name: "checkpoint", Title: "checkpoint with LZ4 over criu dump, both to the same directory",
			Bound: 1, Aim: 0.5, Limit: 15 * time.Minute, measure: checkpointTime,
		},
		{
			Name: "memory", Title: "largest resident memory of checkpoint and of the pager",
			Bound: 256 << 20, Aim: 64 << 20, Absolute: true, Limit: 15 * time.Minute, measure: residentMemory,
		},
	}
}

const (
	checkpointRuns = 11 // of seven the median wandered by a quarter
	checkpointMiB  = 1024
)

// checkpointTime has both write one running process again and again.
func checkpointTime(ctx context.Context, env *Env) (*Result, error) {
	argv, err := findCRIU(env.opts.CRIU)
	if err != nil {
		return nil, err
	}
	program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: env.mib(checkpointMiB)})
	if err != nil {
		return nil, err
	}
	process, err := env.start(ctx, program)
	if err != nil {
		return nil, err
	}
	result := &Result{}
	var turns []*turn
	for _, subject := range []Subject{&ours{bin: env.opts.Lazyrestore}, &criu{argv: argv}} {
		turns = append(turns, &turn{
			series: result.series(subject.Format(), "ns/op"),
			sample: func(ctx context.Context) (float64, error) {
				dir := env.path(subject.Format())
				took, err := env.checkpoint(ctx, subject, process.Pid, dir, true)
				return float64(took.wall.Nanoseconds()), errors.Join(err, os.RemoveAll(dir))
			},
		})
	}
	env.rounds(ctx, env.runs(checkpointRuns), turns...)
	return result.divide(result.Series[0], result.Series[1]), nil
}

// residentMemory is what our own commands take, for processes of two sizes.
// The value is the largest of all.
func residentMemory(ctx context.Context, env *Env) (*Result, error) {
	result := &Result{}
	for _, mib := range []int{256, env.mib(2048)} {
		program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: mib, Touches: -1})
		if err != nil {
			return result, err
		}
		write := result.series(fmt.Sprintf("checkpoint-%dMiB", mib), "B")
		fill := result.series(fmt.Sprintf("pager-%dMiB", mib), "B")
		if err := env.memoryOf(ctx, program, write, fill); err != nil {
			return result, err
		}
		result.Value = max(result.Value, write.Median(), fill.Median())
		result.Low, result.High = result.Value, result.Value
	}
	return result, nil
}

func (e *Env) memoryOf(ctx context.Context, program *workload.Program, write, fill *Series) error {
	subject := &ours{bin: e.opts.Lazyrestore}
	img, err := e.hold(ctx, subject, program)
	if err != nil {
		return err
	}
	write.add(float64(img.taken.peak))
	peak, err := e.pagerPeak(ctx, subject, img)
	if err != nil {
		return err
	}
	fill.add(float64(peak))
	return e.Clear()
}

// pagerPeak restores, has all memory touched, and looks at what the restoring
// command and its helpers took at most, added up.
func (e *Env) pagerPeak(ctx context.Context, subject Subject, img *image) (int64, error) {
	restored, err := e.restore(ctx, subject, img)
	if err != nil {
		return 0, err
	}
	_, err = restored.touch(ctx, "sweep", true)
	var peak int64
	if err == nil {
		var parts []cost
		parts, err = restored.costs()
		peak = sumOf(parts).peak
	}
	if stopped := restored.Stop(); err == nil {
		err = stopped
	}
	return peak, err
}
