package harness

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/plot"
)

// A Figure is one thing that is measured: a ratio with a bound, or, without a
// bound, whatever its series say.
type Figure struct {
	// Name is what the figure is called on the command line.
	Name string
	// Title says what is divided by what.
	Title string
	// Bound is what the ratio must keep, Aim what it is meant to reach.
	Bound, Aim float64
	// Higher says that a higher ratio is better.
	Higher bool
	// Absolute says that the value is no ratio but bytes, or of another unit.
	Absolute bool
	// Unit is that of an absolute value; bytes when empty.
	Unit string
	// Long says that a quick run of all figures leaves it out.
	Long bool
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
	// Beside are ratios under other conditions, which have no bound.
	Beside []Ratio
	// Plots are pictures of it.
	Plots []*plot.Plot
	// Notes say what a reader has to know besides.
	Notes []string
	// Took is how long the figure took.
	Took time.Duration
	// Err is why there is no value.
	Err error
}

// A Ratio is one that is shown beside a figure's own, as the figure's name and its own.
type Ratio struct {
	Name             string
	Value, Low, High float64
}

// Kept reports whether the value is on the right side of bound.
func (f *Figure) kept(value, bound float64) bool {
	if f.Higher {
		return value >= bound
	}
	return value <= bound
}

// Verdicts that are looked for.
const (
	failedVerdict = "failed"
	missedVerdict = "MISSED"
)

// Verdict is "aim", "ok" or "MISSED" of a ratio, "taken" of a figure without a
// bound, "failed" where something could not be measured, and "skipped" where
// what it is to be compared with is not there.
func (r *Result) Verdict() string {
	switch {
	case errors.Is(r.Err, ErrNoCRIU):
		return "skipped"
	case r.Err != nil:
		return failedVerdict
	case r.Figure.Bound == 0:
		return "taken"
	case math.IsNaN(r.Value):
		return failedVerdict
	case r.Figure.kept(r.Value, r.Figure.Aim):
		return "aim"
	case r.Figure.kept(r.Value, r.Figure.Bound):
		return "ok"
	default:
		return missedVerdict
	}
}

// measure adds the series of a subject's measure.
func (r *Result) measure(subject, measure, unit string) *Series {
	s := &Series{Name: subject, Measure: measure, Unit: unit}
	r.Series = append(r.Series, s)
	return s
}

// detail is the series of a subject's measure that only the report and the JSON
// object show.
func (r *Result) detail(subject, measure, unit string) *Series {
	if s := r.Find(subject, measure); s != nil {
		return s
	}
	s := r.measure(subject, measure, unit)
	s.Detail = true
	return s
}

// series adds one.
func (r *Result) series(name, unit string) *Series {
	s := &Series{Name: name, Unit: unit}
	r.Series = append(r.Series, s)
	return s
}

// divide fills in the value: over divided by under.
func (r *Result) divide(over, under *Series) *Result {
	ratio := divided("", over, under)
	r.Value, r.Low, r.High = ratio.Value, ratio.Low, ratio.High
	return r
}

// beside adds a ratio under other conditions.
func (r *Result) beside(name string, over, under *Series) {
	r.Beside = append(r.Beside, divided(name, over, under))
}

// divided is the ratio of the medians, with the quartiles of the rounds' ratios.
func divided(name string, over, under *Series) Ratio {
	rounds := ratios(over, under)
	return Ratio{name, over.Median() / under.Median(), quantile(rounds, 0.25), quantile(rounds, 0.75)}
}

// Measure takes the figure. A figure that cannot be taken has its Err set; that
// alone is no reason to stop the others.
func (f *Figure) Measure(ctx context.Context, env *Env) *Result {
	limited, cancel := context.WithTimeout(ctx, f.Limit)
	defer cancel()
	env.logf("== %s: %s", f.Name, f.Title)
	began := time.Now()
	result, err := f.measure(limited, env)
	if result == nil {
		result = &Result{Value: math.NaN(), Low: math.NaN(), High: math.NaN()}
	}
	result.Figure, result.Took = f, time.Since(began)
	env.logf("== %s took %v", f.Name, result.Took.Round(100*time.Millisecond))
	failed := []error{err, env.Clear()}
	for _, series := range result.Series {
		if series.Err != nil && !errors.Is(series.Err, ErrNoCRIU) {
			failed = append(failed, fmt.Errorf("%s: %w", series.Name, series.Err))
		}
	}
	result.Err = errors.Join(failed...)
	if result.Err != nil {
		result.Err = fmt.Errorf("%s: %w", f.Name, result.Err)
	}
	return result
}
