package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/workload"
)

// What threads cost: each further one at a restore, and ten of them, with a
// hundred mappings, in the time for which a checkpoint stops the process.

func stateFigures() []*Figure {
	const further = 500
	return []*Figure{
		{
			Name: "each-thread", Title: "TTFI of ours for each further thread, that sleeps", Absolute: true, Unit: "ns/op",
			Bound: 60e3, Aim: 25e3, Limit: 10 * time.Minute,
			measure: func(ctx context.Context, env *Env) (*Result, error) {
				return env.each(ctx, further, func(n int) workload.MappingsOptions {
					return workload.MappingsOptions{MiB: 64, Touches: -1, Threads: n}
				})
			},
		},
		{
			Name: "frozen", Title: "time for which a checkpoint of ours stops 100 mappings, 10 threads, 1 MiB", Absolute: true, Unit: "ns/op",
			Bound: 20e6, Aim: 5e6, Limit: 5 * time.Minute, measure: frozen,
		},
	}
}

const frozenRuns = 21

// frozen has a process checkpointed again and again, and let run on. Its memory
// is so little that reading it does not show.
func frozen(ctx context.Context, env *Env) (*Result, error) {
	const threads = 10 // with the first
	program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: 1, Touches: -1, Threads: threads - 1})
	if err != nil {
		return nil, err
	}
	process, err := env.start(ctx, program)
	if err != nil {
		return nil, err
	}
	result := &Result{}
	series := result.series("ours", "ns/op")
	dir := env.path("frozen.image")
	env.rounds(ctx, env.runs(frozenRuns), &turn{series: series, sample: func(ctx context.Context) (float64, error) {
		took, err := frozenFor(ctx, env.opts.Lazyrestore, process.Pid, dir)
		return took, errors.Join(err, os.RemoveAll(dir))
	}})
	result.Value = series.Median()
	result.Low, result.High = quantile(series.Values, 0.25), quantile(series.Values, 0.75)
	return result, env.stop(process)
}

// frozenFor is how long one checkpoint says that it has stopped the process, in
// nanoseconds.
func frozenFor(ctx context.Context, bin string, pid int, dir string) (float64, error) {
	cmd := exec.CommandContext(ctx, bin, "checkpoint", "--json", "-R", "--codec", "none", "-D", dir, strconv.Itoa(pid))
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("checkpoint: %w: %s", err, said.String())
	}
	var told struct {
		FrozenMS float64 `json:"frozen_ms"`
	}
	if err := json.Unmarshal(out, &told); err != nil {
		return 0, fmt.Errorf("what checkpoint says: %w", err)
	}
	return told.FrozenMS * 1e6, nil
}
