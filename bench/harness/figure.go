package harness

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// A Figure is one thing that is measured: a ratio with a bound.
type Figure struct {
	// Name is what the figure is called on the command line.
	Name string
	// Title says what is divided by what.
	Title string
	// Bound is what the ratio must keep, Aim what it is meant to reach.
	Bound, Aim float64
	// Higher says that a higher ratio is better.
	Higher bool
	// Absolute says that the value is no ratio but bytes.
	Absolute bool
	// Limit is how long it may take.
	Limit time.Duration

	measure func(ctx context.Context, env *Env) (*Result, error)
}

// A Result is what a figure came to.
type Result struct {
	Figure *Figure
	Series []*Series
	// Value is the median of one subject over that of the other, Low and High
	// the quartiles of the ratios of single rounds.
	Value, Low, High float64
	// Notes say what a reader has to know besides.
	Notes []string
	// Err is why there is no value.
	Err error
}

// Kept reports whether the value is on the right side of bound.
func (f *Figure) kept(value, bound float64) bool {
	if f.Higher {
		return value >= bound
	}
	return value <= bound
}

// Verdict is "aim", "ok", "MISSED", or "failed" where nothing was measured.
func (r *Result) Verdict() string {
	switch {
	case r.Err != nil || math.IsNaN(r.Value):
		return "failed"
	case r.Figure.kept(r.Value, r.Figure.Aim):
		return "aim"
	case r.Figure.kept(r.Value, r.Figure.Bound):
		return "ok"
	default:
		return "MISSED"
	}
}

// series adds one.
func (r *Result) series(name, unit string) *Series {
	s := &Series{Name: name, Unit: unit}
	r.Series = append(r.Series, s)
	return s
}

// divide fills in the value: over divided by under.
func (r *Result) divide(over, under *Series) *Result {
	rounds := ratios(over, under)
	r.Value = over.Median() / under.Median()
	r.Low, r.High = quantile(rounds, 0.25), quantile(rounds, 0.75)
	return r
}

// Measure takes the figure. A figure that cannot be taken has its Err set; that
// alone is no reason to stop the others.
func (f *Figure) Measure(ctx context.Context, env *Env) *Result {
	limited, cancel := context.WithTimeout(ctx, f.Limit)
	defer cancel()
	env.logf("== %s: %s", f.Name, f.Title)
	result, err := f.measure(limited, env)
	if result == nil {
		result = &Result{Value: math.NaN(), Low: math.NaN(), High: math.NaN()}
	}
	result.Figure = f
	failed := []error{err, env.Clear()}
	for _, series := range result.Series {
		if series.Err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", series.Name, series.Err))
		}
	}
	result.Err = errors.Join(failed...)
	if result.Err != nil {
		result.Err = fmt.Errorf("%s: %w", f.Name, result.Err)
	}
	return result
}

// Figures is all figures, in the order of the tables.
func Figures() []*Figure {
	return []*Figure{
		{
			Name: "ttfi", Title: "TTFI, 100 mappings: criu restore --lazy-pages over ours",
			Bound: 3, Aim: 5, Higher: true, Limit: 15 * time.Minute, measure: ttfiMappings,
		},
		{
			Name: "ttfi-lammps", Title: "TTFI, LAMMPS: criu restore --lazy-pages over ours",
			Bound: 5, Aim: 12, Higher: true, Limit: 15 * time.Minute, measure: ttfiLAMMPS,
		},
		{
			Name: "ttfi-size", Title: "TTFI of ours, 4 GiB of memory over 256 MiB",
			Bound: 1.3, Aim: 1.05, Limit: 15 * time.Minute, measure: ttfiSize,
		},
		{
			Name: "startup", Title: "start-up: lazyrestore version over a Go program that prints a line",
			Bound: 1.7, Aim: 1.2, Limit: 5 * time.Minute, measure: startup,
		},
		{
			Name: "touch-page", Title: "one random touch, no fill, 4 KiB chunks, codec none: ours over a C handler that spins",
			Bound: 2, Aim: 1.2, Limit: 15 * time.Minute, measure: touchPage,
		},
		{
			Name: "touch-chunk", Title: "one random touch, no fill, 64 KiB chunks, LZ4: ours over a C handler that spins",
			Bound: 3.5, Aim: 2, Limit: 15 * time.Minute, measure: touchChunk,
		},
		{
			Name: "touches", Title: "mean of 2,000 random touches in 1 GiB with the fill, LZ4: ours over criu lazy-pages",
			Bound: 0.5, Aim: 0.25, Limit: 15 * time.Minute, measure: touches,
		},
		{
			Name: "sweep", Title: "touch all of 2 GiB once with the fill, LZ4: our rate over bulk UFFDIO_COPY on one core",
			Bound: 0.4, Aim: 0.9, Higher: true, Limit: 15 * time.Minute, measure: sweep,
		},
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
