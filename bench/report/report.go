// Package report writes a run of the benchmarks as one HTML page that needs
// nothing besides itself, and its plots as SVG files.
package report

import (
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/harness"
	"github.com/lazyrestore/lazyrestore/bench/plot"
)

//go:embed page.html
var page string

// Write writes DIR/index.html and DIR/NAME.svg for each plot. The directory is
// made when it is not there; files of these names are replaced.
func Write(dir string, run *harness.Run) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	for _, result := range run.Results {
		for _, p := range result.Plots {
			if err := writeFile(filepath.Join(dir, p.Name+".svg"), p.WriteSVG); err != nil {
				return fmt.Errorf("report: %w", err)
			}
		}
	}
	err := writeFile(filepath.Join(dir, "index.html"), func(w io.Writer) error { return HTML(w, run) })
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// HTML writes the page.
func HTML(w io.Writer, run *harness.Run) error {
	t, err := template.New("page").Funcs(template.FuncMap{
		"style":   func() template.CSS { return template.CSS(plot.Style()) },
		"svg":     func(p *plot.Plot) template.HTML { return template.HTML(p.SVG()) },
		"ratio":   func(r *harness.Result) bool { return r.Figure.Bound != 0 },
		"first":   first,
		"took":    func(d time.Duration) string { return d.Round(time.Second).String() },
		"spread":  spread,
		"ratios":  ratios,
		"failure": failure,
		"grid":    newGrid,
	}).Parse(page)
	if err != nil {
		return err
	}
	return t.Execute(w, run)
}

// first is the first line of an error, for a row.
func first(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// ratios are the figures with a bound, for the table at the top.
func ratios(run *harness.Run) (list []*harness.Result) {
	for _, r := range run.Results {
		if r.Figure.Bound != 0 {
			list = append(list, r)
		}
	}
	return list
}

// spread is a series' median and quartiles.
func spread(s *harness.Series) string {
	low, high := s.Spread()
	return s.Show(s.Median()) + " (" + s.Show(low) + " - " + s.Show(high) + ")"
}

// A grid is a table: a line for each subject, a column for each measure.
type grid struct {
	Result             *harness.Result
	Subjects, Measures []string
	Runs               bool // with a column for them, or for what failed
}

// newGrid has the subjects that there is something to say of.
func newGrid(r *harness.Result, measures []string, runs bool) grid {
	g := grid{Result: r, Measures: measures, Runs: runs}
	for _, subject := range r.Subjects() {
		if runs || slices.ContainsFunc(measures, func(m string) bool { return r.Find(subject, m) != nil }) {
			g.Subjects = append(g.Subjects, subject)
		}
	}
	return g
}

// failure is why a subject has no more values.
func failure(r *harness.Result, subject string) error {
	for _, s := range r.Series {
		if s.Name == subject && s.Err != nil {
			return s.Err
		}
	}
	return nil
}
