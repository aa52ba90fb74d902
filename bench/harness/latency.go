package harness

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/lazyrestore/lazyrestore/bench/plot"
	"github.com/lazyrestore/lazyrestore/bench/workload"
	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

func latencyFigures() []*Figure {
	return []*Figure{{
		Name: "latency", Title: "what 2,000 random touches of a lazily restored program wait, and for what",
		Limit: 10 * time.Minute, measure: latency,
	}}
}

// latencies are what touches took, as the program itself has measured.
type latencies struct{ *hdrhistogram.Histogram }

// newLatencies is from 100 ns to a minute, to three digits.
func newLatencies() latencies {
	return latencies{hdrhistogram.New(100, int64(time.Minute), 3)}
}

// read adds what a program has written.
func (l latencies) read(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("what touches took: %w", err)
	}
	for ; len(text) >= 4; text = text[4:] {
		if err := l.RecordValue(max(int64(binary.LittleEndian.Uint32(text)), 100)); err != nil {
			return fmt.Errorf("what touches took: %w", err)
		}
	}
	return nil
}

// line is the share of the touches that took no longer than so and so.
func (l latencies) line(name string) plot.Line {
	line := plot.Line{Name: name, Colour: colourOf(name)}
	for percent := range 100 {
		line.Points = append(line.Points, plot.Point{X: float64(l.ValueAtQuantile(float64(percent))), Y: float64(percent) / 100})
	}
	for _, percent := range []float64{99.5, 99.9, 99.99, 100} {
		line.Points = append(line.Points, plot.Point{X: float64(l.ValueAtQuantile(percent)), Y: percent / 100})
	}
	return line
}

// A toucher is a subject whose program's touches are measured.
type toucher struct {
	name  string
	all   latencies
	mean  *Series
	p50   *Series
	p99   *Series
	worst *Series
	// clock is what one reading of the clock takes there: part of each touch.
	clock *Series
	// far says that its faults wait for a slow line.
	far bool
	// stages are the pager's own means of what a fault waits for, one a run.
	stages []*Series
}

// stageNames are what the pager does of a fault, in this order.
var stageNames = []string{"queue", "fetch", "decode", "copy"}

func (r *Result) toucher(name string) *toucher {
	t := &toucher{
		name: name, all: newLatencies(),
		mean: r.measure(name, "mean", "ns/op"), p50: r.measure(name, "median", "ns/op"),
		p99: r.measure(name, "p99", "ns/op"), worst: r.measure(name, "worst", "ns/op"),
	}
	for _, stage := range stageNames {
		t.stages = append(t.stages, r.measure(name, stage, "ns/op"))
	}
	t.clock = r.measure(name, "clock", "ns/op")
	return t
}

// pager books what the pager says of one run.
func (t *toucher) pager(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("statistics: %w", err)
	}
	var stats lazyrestore.Stats
	if err := json.Unmarshal(text, &stats); err != nil {
		return fmt.Errorf("statistics: %w", err)
	}
	if s := stats.Stages; s != nil && stats.Faults > 0 {
		for i, stage := range []lazyrestore.Stage{s.Queue, s.Fetch, s.Decode, s.Copy} {
			t.stages[i].add(1e3 * stage.MeanMicros)
		}
	}
	return nil
}

// add books one run of touches: what the program has printed of them, and the
// file in which their times are.
func (t *toucher) add(said map[string]int64, file string) (mean float64, err error) {
	one := newLatencies()
	if err := one.read(file); err != nil {
		return 0, err
	}
	t.all.Merge(one.Histogram)
	t.p50.add(float64(one.ValueAtQuantile(50)))
	t.p99.add(float64(one.ValueAtQuantile(99)))
	t.worst.add(float64(one.Max()))
	t.clock.add(float64(said["clock_ps"]) / 1000)
	return one.Mean(), nil
}

// latency has the program touch random pages while it is being filled, and
// without a fill, for each subject, and the C handler that spins do the same.
func latency(ctx context.Context, env *Env) (*Result, error) {
	program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: env.mib(512), Touches: touchCount})
	if err != nil {
		return nil, err
	}
	result := &Result{Notes: []string{
		"touches are timed by the program itself; some find their page there, brought by the fill or with a neighbour",
		"queue, fetch, decode, copy: what the pager did of a fault, the mean, from reading the event on; raising the fault and waking the thread come on top",
		"clock: what one of its readings of the clock takes, which is part of each touch",
	}}
	var touchers []*toucher
	floor := result.toucher("c-spinning-handler")
	turns := []*turn{{series: floor.mean, sample: func(ctx context.Context) (float64, error) {
		file := filepath.Join(env.dir, "took")
		lines, err := env.floor(ctx, env.mib(512), "-o", file)
		if err != nil {
			return 0, err
		}
		return floor.add(lines["touches"], file)
	}}}
	touchers = append(touchers, floor)
	images := map[string]*image{}
	for _, subject := range env.lazyOnes() {
		t := result.toucher(subject.Name())
		if s, ok := subject.(*served); ok {
			t.far = s.link != nil
		}
		touchers = append(touchers, t)
		made := row{ttfi: t.mean, imageSize: &Series{}, checkpointTime: &Series{}}
		if env.hold1(ctx, subject, program, images, &made); t.mean.Err != nil {
			continue
		}
		img := images[subject.Format()]
		turns = append(turns, &turn{series: t.mean, sample: func(ctx context.Context) (float64, error) {
			return env.touchAll(ctx, subject, img, t)
		}})
	}
	env.rounds(ctx, env.runs(5), turns...)
	result.Plots = append(result.Plots, cdf(touchers), stagesPlot(touchers))
	return result, nil
}

// lazyOnes are the subjects whose memory is missing at first, and ours with
// other chunks, with zstd and without a fill.
func (e *Env) lazyOnes() (list []Subject) {
	of := func(codec, chunk string, fill bool) Subject {
		return &ours{bin: e.opts.Lazyrestore, codec: codec, chunk: chunk, noBackground: !fill, stats: e.path("stats")}
	}
	list = append(list, of("none", "4KiB", false), of("lz4", "64KiB", false), of("zstd", "64KiB", false))
	for _, subject := range e.subjects() {
		switch s := subject.(type) {
		case *ours:
			if s.eager {
				continue
			}
		case *criu:
			if !s.lazy {
				continue
			}
		}
		list = append(list, subject)
	}
	return list
}

// touchAll restores, has the program touch its pages, and reads what that took,
// and what the pager says of it.
func (e *Env) touchAll(ctx context.Context, subject Subject, img *image, t *toucher) (float64, error) {
	restored, err := e.restore(ctx, subject, img)
	if err != nil {
		return 0, err
	}
	said, err := restored.touch(ctx, "touches", false)
	if stopped := restored.Stop(); err == nil {
		err = stopped
	}
	if err != nil {
		return 0, err
	}
	if file := statsOf(subject); file != "" {
		if err := t.pager(file); err != nil {
			return 0, err
		}
	}
	return t.add(said, filepath.Join(img.process.Dir, "took"))
}

// statsOf is the file of the pager's statistics; "" of who has none.
func statsOf(subject Subject) string {
	switch s := subject.(type) {
	case *ours:
		return s.stats
	case *served:
		return s.stats
	}
	return ""
}

func cdf(touchers []*toucher) *plot.Plot {
	p := &plot.Plot{
		Name: "fault-latency", Title: "How long a touch waits: the share that took no longer",
		X: plot.Axis{Label: "time of a touch", Unit: plot.Nanoseconds, Log: true},
		Y: plot.Axis{Label: "share of the touches", Unit: plot.Share},
	}
	for _, t := range touchers {
		if t.all.TotalCount() > 0 {
			p.Lines = append(p.Lines, t.all.line(t.name))
		}
	}
	return p
}

// stagesPlot is where the pager's time for a fault goes, means of all runs.
func stagesPlot(touchers []*toucher) *plot.Plot {
	p := &plot.Plot{
		Name: "fault-stages", Title: "Where the pager's time for a fault goes, mean",
		X:    plot.Axis{Label: "from reading the fault to its page being there", Unit: plot.Nanoseconds},
		Note: "Raising the fault, and waking the thread, come on top. Without the slow link, whose line a fault waits for.",
	}
	for _, t := range touchers {
		if t.far || len(t.stages[0].Values) == 0 {
			continue
		}
		bar := plot.Bar{Name: t.name}
		for i, name := range stageNames {
			bar.Parts = append(bar.Parts, plot.Part{Name: name, Value: t.stages[i].Median()})
		}
		p.Bars = append(p.Bars, bar)
	}
	return p
}
