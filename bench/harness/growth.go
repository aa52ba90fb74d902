package harness

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/plot"
	"github.com/lazyrestore/lazyrestore/bench/workload"
)

const (
	growthRuns = 5
	// growthPatience is how long one size may take for a larger one to follow.
	growthPatience = 3 * time.Minute
)

func growthFigures() []*Figure {
	return []*Figure{
		{
			Name: "growth-memory", Title: "TTFI against the memory of the program, from 64 MiB to as much as fits",
			Limit: 15 * time.Minute, measure: growthMemory,
		},
		{
			Name: "growth-threads", Title: "TTFI against the number of threads, 64 MiB",
			Limit: 10 * time.Minute, measure: growthThreads,
		},
		{
			Name: "growth-mappings", Title: "TTFI against the number of mappings, 64 MiB",
			Limit: 10 * time.Minute, measure: growthMappings,
		},
		{
			Name: "growth-restores", Title: "time until the last of several programs of 64 MiB runs, all restored at once",
			Long: true, Limit: 10 * time.Minute, measure: growthRestores,
		},
	}
}

// A size is one value of what grows.
type size struct {
	x       float64
	name    string
	options workload.MappingsOptions
}

// growthMemory also has the cold start, which is what memory costs without any image.
func growthMemory(ctx context.Context, env *Env) (*Result, error) {
	var sizes []size
	most, why, err := env.mostMiB()
	if err != nil {
		return nil, err
	}
	for _, mib := range growthSizes(most) {
		sizes = append(sizes, size{float64(mib) * (1 << 20), strconv.Itoa(mib) + " MiB", workload.MappingsOptions{MiB: mib, Touches: -1}})
	}
	result, err := env.growth(ctx, sizes, plot.Plot{
		Name: "ttfi-memory", Title: "Time to first instruction, and the memory of the program",
		X: plot.Axis{Label: "memory of the program", Unit: plot.Bytes, Log: true},
	}, true)
	if result != nil {
		result.Notes = append(result.Notes, why)
	}
	return result, err
}

// growthSizes are programs of 64 MiB, four times as much, and so on, up to the
// largest; one of nearly that size is left out.
func growthSizes(most int) (sizes []int) {
	for mib := 64; mib*2 <= most; mib *= 4 {
		sizes = append(sizes, mib)
	}
	return append(sizes, most)
}

// mostMiB is the largest program that the machine has room for beside images of it
// by us and by CRIU, and never more than the user says. It also says so.
func (e *Env) mostMiB() (most int, why string, err error) {
	free, err := availableMemory()
	if err != nil {
		return 0, "", err
	}
	const share = 4 // the program, two images at worst of its size, and as much for whatever else
	fits := max(int(free>>20)/share&^63, 64)
	most = min(e.mib(fits), fits)
	why = fmt.Sprintf("up to %d MiB (--mib): %s are available, of which a program takes up to a quarter, as its images need room too", most, show(float64(free), "B"))
	return most, why, nil
}

// growthRunsOf are fewer for a large program, which takes seconds to start, and
// to restore eagerly.
func growthRunsOf(options workload.MappingsOptions) int {
	if options.MiB > 256 {
		return 3
	}
	return growthRuns
}

func growthThreads(ctx context.Context, env *Env) (*Result, error) {
	return env.growth(ctx, env.counts([]int{1, 8, 64, 256}, func(n int) workload.MappingsOptions {
		return workload.MappingsOptions{MiB: 64, Touches: -1, Threads: n - 1}
	}), plot.Plot{
		Name: "ttfi-threads", Title: "Time to first instruction, and threads",
		X: plot.Axis{Label: "threads", Unit: plot.Count, Log: true},
	}, false)
}

func growthMappings(ctx context.Context, env *Env) (*Result, error) {
	return env.growth(ctx, env.counts([]int{10, 100, 1000, 4000}, func(n int) workload.MappingsOptions {
		return workload.MappingsOptions{MiB: 64, Touches: -1, Mappings: n}
	}), plot.Plot{
		Name: "ttfi-mappings", Title: "Time to first instruction, and mappings",
		X: plot.Axis{Label: "mappings of the program's own", Unit: plot.Count, Log: true},
	}, false)
}

// counts are sizes that are numbers; a quick run leaves the largest out.
func (e *Env) counts(list []int, options func(int) workload.MappingsOptions) (sizes []size) {
	if e.opts.Quick {
		list = list[:len(list)-2]
	}
	for _, n := range list {
		sizes = append(sizes, size{float64(n), strconv.Itoa(n), options(n)})
	}
	return sizes
}

// growth measures TTFI at each size, all subjects in turns, one size after the
// other: several large programs would not fit beside each other.
func (e *Env) growth(ctx context.Context, sizes []size, p plot.Plot, cold bool) (*Result, error) {
	result := &Result{}
	p.Y = plot.Axis{Label: "time to first instruction", Unit: plot.Nanoseconds, Log: true}
	lines := map[string][]plot.Point{}
	for i, at := range sizes {
		began := time.Now()
		program, err := e.builder.Mappings(ctx, at.options)
		if err != nil {
			return result, err
		}
		all := e.growthTurns(ctx, result, program, at.name, cold)
		e.rounds(ctx, e.runs(growthRunsOf(at.options)), all...)
		for _, t := range all {
			if t == nil || len(t.series.Values) == 0 {
				continue
			}
			low, high := t.series.Spread()
			lines[t.series.Name] = append(lines[t.series.Name], plot.Point{X: at.x, Y: t.series.Median(), Low: low, High: high})
		}
		if err := errors.Join(ctx.Err(), e.Clear()); err != nil {
			return result, err
		}
		if took := time.Since(began); took > growthPatience && i < len(sizes)-1 {
			result.Notes = append(result.Notes, fmt.Sprintf("none beyond %s, which took %v", at.name, took.Round(time.Second)))
			break
		}
	}
	for _, name := range result.Subjects() {
		p.Lines = append(p.Lines, plot.Line{Name: name, Colour: colourOf(name), Points: lines[name]})
	}
	result.Plots = append(result.Plots, &p)
	return result, nil
}

// growthTurns are the turns at one size.
func (e *Env) growthTurns(ctx context.Context, result *Result, program *workload.Program, size string, cold bool) (all []*turn) {
	if cold {
		s := result.measure("cold start", size, "ns/op")
		all = append(all, &turn{series: s, sample: func(ctx context.Context) (float64, error) { return e.cold(ctx, program) }})
	}
	images := map[string]*image{}
	for _, subject := range e.subjects() {
		if remote(subject) {
			continue // that is a question of the disk or of the network
		}
		s := result.measure(subject.Name(), size, "ns/op")
		made := row{ttfi: s, imageSize: &Series{}, checkpointTime: &Series{}}
		if e.hold1(ctx, subject, program, images, &made); s.Err != nil {
			continue
		}
		img := images[subject.Format()]
		all = append(all, &turn{series: s, sample: func(ctx context.Context) (float64, error) { return e.ttfi(ctx, subject, img) }})
	}
	return all
}

// copiesName is the subject that restores one image several times.
const copiesName = "ours-lazy-copies"

// growthRestores restores several programs at once, with ours and with CRIU's
// lazy restore, and waits for the last of them; and copies of one program.
func growthRestores(ctx context.Context, env *Env) (*Result, error) {
	result := &Result{Notes: []string{
		copiesName + ": of one image, each in a pid namespace of its own (restore --pid-ns), until the last command says that its program runs",
	}}
	p := &plot.Plot{
		Name: "ttfi-restores", Title: "Time until the last of several restored programs runs",
		X: plot.Axis{Label: "restores at once", Unit: plot.Count, Log: true},
		Y: plot.Axis{Label: "time to the last one's first instruction", Unit: plot.Nanoseconds, Log: true},
	}
	counts := env.counts([]int{1, 2, 4, 8}, func(int) workload.MappingsOptions { return workload.MappingsOptions{} })
	subjects, images, err := env.severalImages(ctx, result, counts)
	if err != nil {
		return nil, err
	}
	lines := map[string][]plot.Point{}
	for _, count := range counts {
		n := int(count.x)
		var turns []*turn
		for _, subject := range subjects {
			s := result.measure(subject.Name(), count.name, "ns/op")
			list := images[subject.Name()]
			turns = append(turns, &turn{series: s, sample: func(ctx context.Context) (float64, error) {
				return env.ttfiOfAll(ctx, subject, list[:n])
			}})
			if _, ok := subject.(*ours); ok {
				s := result.measure(copiesName, count.name, "ns/op")
				turns = append(turns, &turn{series: s, sample: func(ctx context.Context) (float64, error) {
					return env.ttfiOfCopies(ctx, list[0], n)
				}})
			}
		}
		env.rounds(ctx, env.runs(growthRuns), turns...)
		for _, t := range turns {
			if len(t.series.Values) > 0 {
				low, high := t.series.Spread()
				lines[t.series.Name] = append(lines[t.series.Name], plot.Point{X: count.x, Y: t.series.Median(), Low: low, High: high})
			}
		}
	}
	for _, name := range result.Subjects() {
		p.Lines = append(p.Lines, plot.Line{Name: name, Colour: colourOf(name), Points: lines[name]})
	}
	result.Plots = append(result.Plots, p)
	return result, nil
}

// severalImages are as many images as are restored at once at most, of each
// subject that restores lazily from here.
func (e *Env) severalImages(ctx context.Context, result *Result, counts []size) ([]Subject, map[string][]*image, error) {
	program, err := e.builder.Mappings(ctx, workload.MappingsOptions{MiB: 64, Touches: -1})
	if err != nil {
		return nil, nil, err
	}
	most := int(counts[len(counts)-1].x)
	images := map[string][]*image{}
	var subjects []Subject
	for _, subject := range e.subjects() {
		if o, ok := subject.(*ours); ok && o.eager || remote(subject) {
			continue
		}
		if c, ok := subject.(*criu); ok && !c.lazy {
			continue
		}
		for range most {
			img, err := e.hold(ctx, subject, program)
			if err != nil {
				result.measure(subject.Name(), counts[0].name, "ns/op").Err = err
				break
			}
			images[subject.Name()] = append(images[subject.Name()], img)
		}
		if len(images[subject.Name()]) == most {
			subjects = append(subjects, subject)
		}
	}
	return subjects, images, nil
}

// ttfiOfAll restores all images at once and gives the longest TTFI.
func (e *Env) ttfiOfAll(ctx context.Context, subject Subject, images []*image) (float64, error) {
	var all sync.WaitGroup
	took, failed := make([]time.Duration, len(images)), make([]error, len(images))
	restored := make([]*Restored, len(images))
	for i, img := range images {
		all.Go(func() {
			restored[i], failed[i] = e.restore(ctx, subject, img)
			if failed[i] == nil {
				took[i] = restored[i].TTFI
			}
		})
	}
	all.Wait()
	longest := time.Duration(0)
	for i, r := range restored {
		longest = max(longest, took[i])
		if r != nil {
			failed[i] = r.Stop() // there is none if the restore failed
		}
	}
	if err := errors.Join(failed...); err != nil {
		return 0, fmt.Errorf("%d at once: %w", len(images), err)
	}
	return float64(longest.Nanoseconds()), nil
}
