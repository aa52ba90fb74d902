package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/plot"
)

// A Run is figures taken one after the other, and on what.
type Run struct {
	Machine Machine       `json:"machine"`
	Took    time.Duration `json:"took_ns"`
	Results []*Result     `json:"figures"`
}

// Measure takes the figures. One that fails is reported in its place; the
// others go on. The error is the context's.
func (e *Env) Measure(ctx context.Context, figures []*Figure) (*Run, error) {
	run := &Run{Machine: e.Machine()}
	for _, figure := range figures {
		result := figure.Measure(ctx, e)
		if err := ctx.Err(); err != nil {
			return run, err
		}
		run.Results = append(run.Results, result)
		run.Took = time.Since(run.Machine.Began)
	}
	return run, nil
}

// Failed is what did not work, and, with check, what is beyond its bound. A
// figure that was skipped is neither.
func (r *Run) Failed(check bool) error {
	var failed []error
	for _, result := range r.Results {
		switch verdict := result.Verdict(); {
		case verdict == failedVerdict:
			failed = append(failed, fmt.Errorf("%s failed", result.Figure.Name))
		case check && verdict == missedVerdict:
			failed = append(failed, fmt.Errorf("%s is beyond its bound", result.Figure.Name))
		}
	}
	return errors.Join(failed...)
}

// Samples writes all samples in Go's benchmark format, for benchstat.
func (r *Run) Samples(w io.Writer) {
	r.Machine.Describe(w)
	for _, result := range r.Results {
		result.Samples(w)
	}
}

// WriteJSON writes the run as one object.
func (r *Run) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// jsonNumber leaves out what is no number: JSON has none for it.
func jsonNumber(v float64) *float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	return &v
}

// MarshalJSON gives medians and quartiles beside the values.
func (s *Series) MarshalJSON() ([]byte, error) {
	low, high := s.Spread()
	out := struct {
		Subject string    `json:"subject"`
		Measure string    `json:"measure,omitempty"`
		Unit    string    `json:"unit"`
		Median  *float64  `json:"median,omitempty"`
		Low     *float64  `json:"first_quartile,omitempty"`
		High    *float64  `json:"third_quartile,omitempty"`
		Runs    int       `json:"runs"`
		Values  []float64 `json:"values"`
		Error   string    `json:"error,omitempty"`
	}{s.Name, s.Measure, s.Unit, jsonNumber(s.Median()), jsonNumber(low), jsonNumber(high), len(s.Values), s.Values, ""}
	if s.Err != nil {
		out.Error = s.Err.Error()
	}
	return json.Marshal(out)
}

// MarshalJSON names the parts as those of a figure.
func (r Ratio) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Name  string   `json:"name"`
		Value *float64 `json:"value,omitempty"`
		Low   *float64 `json:"first_quartile,omitempty"`
		High  *float64 `json:"third_quartile,omitempty"`
	}{r.Name, jsonNumber(r.Value), jsonNumber(r.Low), jsonNumber(r.High)})
}

// MarshalJSON gives the figure's own words beside the values.
func (r *Result) MarshalJSON() ([]byte, error) {
	out := struct {
		Name    string       `json:"name"`
		Title   string       `json:"title"`
		Verdict string       `json:"verdict"`
		Value   *float64     `json:"value,omitempty"`
		Low     *float64     `json:"first_quartile,omitempty"`
		High    *float64     `json:"third_quartile,omitempty"`
		Bound   float64      `json:"bound,omitempty"`
		Aim     float64      `json:"aim,omitempty"`
		Beside  []Ratio      `json:"beside,omitempty"`
		Took    int64        `json:"took_ns"`
		Error   string       `json:"error,omitempty"`
		Notes   []string     `json:"notes,omitempty"`
		Series  []*Series    `json:"series"`
		Plots   []*plot.Plot `json:"plots,omitempty"`
	}{
		Name: r.Figure.Name, Title: r.Figure.Title, Verdict: r.Verdict(), Bound: r.Figure.Bound, Aim: r.Figure.Aim, Beside: r.Beside,
		Took: r.Took.Nanoseconds(), Notes: r.Notes, Series: r.Series, Plots: r.Plots,
	}
	if r.Figure.Bound != 0 {
		out.Value, out.Low, out.High = jsonNumber(r.Value), jsonNumber(r.Low), jsonNumber(r.High)
	}
	if r.Err != nil {
		out.Error = r.Err.Error()
	}
	return json.Marshal(out)
}
