package harness

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// Table writes all results for people: each figure with its ratio, then under
// its name what each subject gave.
func Table(w io.Writer, results []*Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if slices.ContainsFunc(results, func(r *Result) bool { return r.Figure.Bound != 0 }) {
		fmt.Fprintln(t, "figure\tvalue\tquartiles\tbound\taim\t")
	}
	for _, r := range results {
		if r.Figure.Bound == 0 {
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Figure.Name, r.Figure.Show(r.Value),
			r.Figure.Show(r.Low)+" - "+r.Figure.Show(r.High), r.Figure.Show(r.Figure.Bound),
			r.Figure.Show(r.Figure.Aim), r.Verdict())
		for _, b := range r.Beside {
			fmt.Fprintf(t, "%s-%s\t%s\t%s\t\t\t\n", r.Figure.Name, b.Name, r.Figure.Show(b.Value), r.Figure.Show(b.Low)+" - "+r.Figure.Show(b.High))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range results {
		fmt.Fprintf(t, "\n%s: %s\n", r.Figure.Name, r.Figure.Title)
		if r.Err != nil && len(r.Series) == 0 {
			fmt.Fprintf(t, "  %s: %s\n", r.Verdict(), firstLine(r.Err.Error()))
		}
		for _, note := range r.Notes {
			fmt.Fprintf(t, "  %s\n", note)
		}
		if len(r.Measures()) > 0 {
			r.grid(t)
		} else {
			r.list(t)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// list writes a line for each series.
func (r *Result) list(w io.Writer) {
	for _, s := range r.Series {
		low, high := s.Spread()
		if len(s.Values) > 0 {
			fmt.Fprintf(w, "  %s\t%s\t%s - %s\t%d runs\n", s.Name, show(s.Median(), s.Unit), show(low, s.Unit), show(high, s.Unit), len(s.Values))
		}
		if s.Err != nil {
			fmt.Fprintf(w, "  %s\tfailed: %s\n", s.Name, firstLine(s.Err.Error()))
		}
	}
}

// grid writes a line for each subject, with a column for each measure: the
// median, and how far the quartiles are from it.
func (r *Result) grid(w io.Writer) {
	measures := r.Measures()
	fmt.Fprintf(w, "  \t%s\truns\n", strings.Join(measures, "\t"))
	for _, subject := range r.Subjects() {
		fmt.Fprintf(w, "  %s", subject)
		var failed error
		for _, m := range measures {
			s := r.Find(subject, m)
			if s == nil {
				fmt.Fprint(w, "\t-")
				continue
			}
			if s.Err != nil {
				failed = s.Err
			}
			fmt.Fprintf(w, "\t%s", s.Short())
		}
		if failed != nil {
			fmt.Fprintf(w, "\tfailed: %s\n", firstLine(failed.Error()))
		} else {
			fmt.Fprintf(w, "\t%s\n", r.Runs(subject))
		}
	}
}

// Runs is how often a subject was measured: one number, or, where that was not
// the same for all measures, the fewest and the most.
func (r *Result) Runs(subject string) string {
	fewest, most := 0, 0
	for _, s := range r.Series {
		if n := len(s.Values); s.Name == subject && !s.Detail && n > 0 {
			if most == 0 {
				fewest = n
			}
			fewest, most = min(fewest, n), max(most, n)
		}
	}
	if fewest < most {
		return fmt.Sprintf("%d - %d", fewest, most)
	}
	return strconv.Itoa(most)
}

// Measures are what was measured of each subject, in their order, without
// details; none where each series stands for itself.
func (r *Result) Measures() []string {
	return distinct(r.Series, func(s *Series) string {
		if s.Detail {
			return ""
		}
		return s.Measure
	})
}

// Details are the measures that are details.
func (r *Result) Details() []string {
	return distinct(r.Series, func(s *Series) string {
		if s.Detail {
			return s.Measure
		}
		return ""
	})
}

// Subjects are those that were measured, in their order.
func (r *Result) Subjects() []string {
	return distinct(r.Series, func(s *Series) string { return s.Name })
}

func distinct(all []*Series, of func(*Series) string) []string {
	var names []string
	for _, s := range all {
		if name := of(s); name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// Find is the series of a subject and a measure, or nil.
func (r *Result) Find(subject, measure string) *Series {
	for _, s := range r.Series {
		if s.Name == subject && s.Measure == measure {
			return s
		}
	}
	return nil
}

// Short is the median with half the distance of the quartiles.
func (s *Series) Short() string {
	if len(s.Values) == 0 {
		return "-"
	}
	text := show(s.Median(), s.Unit)
	if low, high := s.Spread(); len(s.Values) > 1 && s.Median() > 0 {
		text += fmt.Sprintf(" ±%.0f%%", 50*(high-low)/s.Median())
	}
	return text
}

// Samples writes every sample as a line of Go's benchmark format, for
// benchstat.
func (r *Result) Samples(w io.Writer) {
	for _, series := range r.Series {
		name := fmt.Sprintf("Benchmark%s/subject=%s", camel(r.Figure.Name), strings.ReplaceAll(series.Name, " ", "_"))
		if series.Measure != "" {
			name += "/measure=" + strings.ReplaceAll(series.Measure, " ", "_")
		}
		for _, v := range series.Values {
			fmt.Fprintf(w, "%s\t1\t%.6g %s\n", name, v, series.Unit)
		}
	}
}

// Show writes a value of the figure.
func (f *Figure) Show(v float64) string {
	if f.Absolute {
		return show(v, cmp.Or(f.Unit, "B"))
	}
	return show(v, "")
}

// show writes a value with its unit and three digits.
func show(v float64, unit string) string {
	switch {
	case math.IsNaN(v):
		return "-"
	case unit == "ns/op":
		return showTime(time.Duration(v))
	case unit == "B/s":
		return fmt.Sprintf("%.2f GB/s", v/1e9)
	case unit == "B":
		return fmt.Sprintf("%.1f MiB", v/(1<<20))
	case unit == "faults":
		return fmt.Sprintf("%.0f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func showTime(d time.Duration) string {
	switch {
	case d >= time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	case d >= time.Millisecond:
		return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
	case d < time.Microsecond && d > 0:
		return fmt.Sprintf("%d ns", d.Nanoseconds())
	default:
		return fmt.Sprintf("%.1f µs", float64(d)/float64(time.Microsecond))
	}
}

// camel turns a figure's name into that of a benchmark.
func camel(name string) string {
	var b strings.Builder
	for part := range strings.SplitSeq(name, "-") {
		b.WriteString(strings.ToUpper(part[:1]) + part[1:])
	}
	return b.String()
}

// firstLine is what fits into a row: the rest of a long message is in the JSON
// and in the report.
func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// Show writes a value of the series with its unit.
func (s *Series) Show(v float64) string { return show(v, s.Unit) }
