package harness

import (
	"context"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/workload"
)

// What each further thing of a process adds to TTFI: two programs that differ in
// the number of one thing, in turns; the difference, by how many there are more.

func objectFigures() []*Figure {
	each := func(name, title string, bound, aim float64, more int, options func(n int) workload.MappingsOptions) *Figure {
		return &Figure{
			Name: name, Title: title, Absolute: true, Unit: "ns/op",
			Bound: bound, Aim: aim, Limit: 10 * time.Minute,
			measure: func(ctx context.Context, env *Env) (*Result, error) { return env.each(ctx, more, options) },
		}
	}
	return []*Figure{
		each("each-descriptor", "TTFI of ours for each further descriptor, of all kinds", 30e3, 10e3, 1000, func(n int) workload.MappingsOptions {
			return workload.MappingsOptions{MiB: 64, Touches: -1, Descriptors: n}
		}),
		each("each-mapping", "TTFI of ours for each further mapping, anonymous", 5e3, 2e3, 4000, func(n int) workload.MappingsOptions {
			return workload.MappingsOptions{MiB: 64, Touches: -1, Mappings: 100 + n}
		}),
	}
}

// each measures TTFI with and without so many more of a thing.
func (e *Env) each(ctx context.Context, more int, options func(n int) workload.MappingsOptions) (*Result, error) {
	subject := &ours{bin: e.opts.Lazyrestore}
	result := &Result{}
	var turns []*turn
	for _, n := range []int{more, 0} {
		program, err := e.builder.Mappings(ctx, options(n))
		if err != nil {
			return nil, err
		}
		name := "without"
		if n > 0 {
			name = "with"
		}
		series := result.series(name, "ns/op")
		turns = append(turns, e.turnOf(ctx, subject, program, series,
			func(ctx context.Context, img *image) (float64, error) { return e.ttfi(ctx, subject, img) }))
	}
	e.rounds(ctx, e.runs(ttfiRuns), turns...)
	with, without := result.Series[0], result.Series[1]
	var rounds []float64
	for i := range min(len(with.Values), len(without.Values)) {
		rounds = append(rounds, (with.Values[i]-without.Values[i])/float64(more))
	}
	result.Value = (with.Median() - without.Median()) / float64(more)
	result.Low, result.High = quantile(rounds, 0.25), quantile(rounds, 0.75)
	return result, nil
}
