package harness

import (
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// Describe says what the figures were taken on, as configuration lines of Go's
// benchmark format.
func (e *Env) Describe(w io.Writer) {
	var name unix.Utsname
	kernel := "unknown"
	if unix.Uname(&name) == nil {
		kernel = unix.ByteSliceToString(name.Release[:])
	}
	where := "a disk, page cache " + string(e.opts.Cache)
	if e.onTmpfs() {
		where = "tmpfs: the page cache is all there is"
	}
	theirs := "no CRIU found"
	if argv, err := findCRIU(e.opts.CRIU); err == nil {
		theirs = criuVersion(argv)
	}
	for _, line := range [][2]string{
		{"goos", runtime.GOOS},
		{"goarch", runtime.GOARCH},
		{"pkg", "github.com/lazyrestore/lazyrestore/bench"},
		{"cpu", cpuModel()},
		{"cores", fmt.Sprint(runtime.NumCPU())},
		{"kernel", kernel},
		{"criu", theirs},
		{"images", where},
	} {
		fmt.Fprintf(w, "%s: %s\n", line[0], line[1])
	}
}

func cpuModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// Samples writes every sample as a line of Go's benchmark format, for
// benchstat.
func (r *Result) Samples(w io.Writer) {
	for _, series := range r.Series {
		name := fmt.Sprintf("Benchmark%s/subject=%s", camel(r.Figure.Name), series.Name)
		for _, v := range series.Values {
			fmt.Fprintf(w, "%s\t1\t%.6g %s\n", name, v, series.Unit)
		}
	}
}

// Table writes all results for people: each figure with its ratio, and under
// it what each subject gave.
func Table(w io.Writer, results []*Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "figure\tvalue\tquartiles\tbound\taim\t")
	for _, r := range results {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Figure.Name, r.Figure.show(r.Value),
			r.Figure.show(r.Low)+" - "+r.Figure.show(r.High), r.Figure.show(r.Figure.Bound),
			r.Figure.show(r.Figure.Aim), r.Verdict())
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range results {
		fmt.Fprintf(t, "\n%s: %s\n", r.Figure.Name, r.Figure.Title)
		if r.Err != nil {
			fmt.Fprintf(t, "  %s\n", strings.ReplaceAll(r.Err.Error(), "\n", "\n  "))
		}
		for _, note := range r.Notes {
			fmt.Fprintf(t, "  %s\n", note)
		}
		for _, s := range r.Series {
			low, high := s.Spread()
			fmt.Fprintf(t, "  %s\t%s\t%s - %s\t%d runs\n", s.Name, show(s.Median(), s.Unit),
				show(low, s.Unit), show(high, s.Unit), len(s.Values))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func (f *Figure) show(v float64) string {
	if f.Absolute {
		return show(v, "B")
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
