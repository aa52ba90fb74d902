package harness

import (
	"context"
	"fmt"
	"os/exec"
	"time"
)

func startupFigures() []*Figure {
	return []*Figure{
		{
			Name: "startup", Title: "start-up: lazyrestore version over a Go program that prints a line",
			Bound: 1.7, Aim: 1.2, Limit: 5 * time.Minute, measure: startup,
		},
	}
}

// startup is what every restore pays before its first line of work.
func startup(ctx context.Context, env *Env) (*Result, error) {
	hello, err := env.builder.GoProgram(ctx, "hello")
	if err != nil {
		return nil, err
	}
	result := &Result{}
	own, bare := result.series("lazyrestore-version", "ns/op"), result.series("go-hello", "ns/op")
	turns := []*turn{
		{series: own, sample: func(ctx context.Context) (float64, error) {
			return runOnce(ctx, env.opts.Lazyrestore, "version")
		}},
		{series: bare, sample: func(ctx context.Context) (float64, error) { return runOnce(ctx, hello) }},
	}
	env.rounds(ctx, 5, turns...) // the first ones read the files
	own.Values, bare.Values = nil, nil
	env.rounds(ctx, env.runs(200), turns...)
	return result.divide(own, bare), nil
}

// runOnce is the time from fork to exit of a command whose output is dropped,
// in nanoseconds.
func runOnce(ctx context.Context, argv ...string) (float64, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	began := time.Now()
	err := cmd.Run()
	took := time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", argv[0], err)
	}
	return float64(took.Nanoseconds()), nil
}
