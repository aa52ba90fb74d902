package harness

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/workload"
)

const (
	programRuns = 3
	programMiB  = 256
)

// programFigures is a figure for each real program: all subjects side by side.
func programFigures() []*Figure {
	var list []*Figure
	for _, p := range []struct {
		name, title string
		program     func(ctx context.Context, e *Env) (*workload.Program, error)
	}{
		{"stencil", "a stencil sweep", kernel("stencil")},
		{"gups", "random access to one table", kernel("gups")},
		{"stream", "STREAM's triad", kernel("stream")},
		{"solver", "conjugate gradients on a sparse matrix", kernel("solver")},
		{"service", "a Python service with NumPy that answers requests", func(ctx context.Context, e *Env) (*workload.Program, error) {
			return e.builder.Service(ctx, e.mib(programMiB))
		}},
		{"lammps", "LAMMPS, Lennard-Jones, a line of output at each step", func(ctx context.Context, e *Env) (*workload.Program, error) {
			opts := workload.LAMMPSOptions{Steps: 100000}
			if e.opts.Quick {
				opts.Size, opts.Ready = 20, 3
			}
			return e.builder.LAMMPS(ctx, opts)
		}},
	} {
		list = append(list, &Figure{
			Name: p.name, Title: p.title + ": what each way to have it running costs", Limit: 15 * time.Minute,
			Long: p.name != "stencil" && p.name != "service",
			measure: func(ctx context.Context, e *Env) (*Result, error) {
				program, err := p.program(ctx, e)
				if err != nil {
					return nil, err
				}
				return e.sideBySide(ctx, p.name, program, e.runs(programRuns))
			},
		})
	}
	return list
}

func kernel(name string) func(context.Context, *Env) (*workload.Program, error) {
	return func(ctx context.Context, e *Env) (*workload.Program, error) {
		return e.builder.Kernel(ctx, name, e.mib(programMiB), 0)
	}
}

// What sideBySide measures of each subject, in the order of the columns.
const (
	measureTTFI       = "TTFI"
	measureStep       = "first step"
	measureResident   = "all resident"
	measureFill       = "fill"
	measurePace       = "step after/before"
	measureCPU        = "CPU"
	measureMemory     = "memory"
	measureImage      = "image"
	measureCheckpoint = "checkpoint"
	measureWrite      = "checkpoint rate"
)

// A row is the series of one subject; those that its program has nothing for
// stay out of the result.
type row struct {
	result                                                                          *Result
	subject                                                                         string
	ttfi, step, resident, fill, pace, cpu, memory, imageSize, checkpointTime, write *Series
}

func (r *Result) row(subject string) *row {
	return &row{
		result:         r,
		subject:        subject,
		ttfi:           r.measure(subject, measureTTFI, "ns/op"),
		step:           r.measure(subject, measureStep, "ns/op"),
		resident:       r.measure(subject, measureResident, "ns/op"),
		fill:           r.measure(subject, measureFill, "B/s"),
		pace:           r.measure(subject, measurePace, ""),
		cpu:            r.measure(subject, measureCPU, "ns/op"),
		memory:         r.measure(subject, measureMemory, "B"),
		imageSize:      r.measure(subject, measureImage, "B"),
		checkpointTime: r.measure(subject, measureCheckpoint, "ns/op"),
		write:          r.measure(subject, measureWrite, "B/s"),
	}
}

// sideBySide has each subject bring one program back, in turns, and a cold
// start beside them. A subject that cannot is a row that says why.
func (e *Env) sideBySide(ctx context.Context, name string, program *workload.Program, runs int) (*Result, error) {
	result := &Result{Notes: []string{
		"first step: the first piece of work done, for a cold start where the images were taken; CPU and memory: of all that restores, without the program, until all is resident",
		"fill: the program's memory over the time from its first instruction until all is resident, of an eager restore over all of its time; checkpoint rate: its memory over the time of the checkpoint",
	}}
	images := map[string]*image{}
	var turns []*turn
	cold := result.row("cold start").step
	turns = append(turns, &turn{series: cold, sample: func(ctx context.Context) (float64, error) { return e.cold(ctx, program) }})
	var broken *programError
	for _, subject := range e.subjects() {
		row := result.row(subject.Name())
		if broken == nil {
			e.hold1(ctx, subject, program, images, row)
		} else {
			row.ttfi.Err = broken // it would not get there another time
		}
		if row.ttfi.Err != nil {
			errors.As(row.ttfi.Err, &broken)
			continue
		}
		img := images[subject.Format()]
		turns = append(turns, &turn{series: row.ttfi, sample: func(ctx context.Context) (float64, error) {
			l, err := e.follow(ctx, subject, img)
			if err != nil {
				return 0, err
			}
			row.add(l, img)
			if program.Unseen {
				return math.NaN(), nil
			}
			return float64(l.ttfi.Nanoseconds()), nil
		}})
	}
	if broken != nil {
		cold.Err = broken
	}
	e.rounds(ctx, runs, turns...)
	result.dropEmpty()
	result.Plots = append(result.Plots, result.startPlot(name, program.Name), result.costPlot(name, program.Name))
	return result, nil
}

// hold1 sees to it that there is an image for the subject, and notes what it
// took. Subjects whose images are alike share one.
func (e *Env) hold1(ctx context.Context, subject Subject, program *workload.Program, images map[string]*image, row *row) {
	img := images[subject.Format()]
	if img == nil {
		if missing, ok := subject.(*absent); ok {
			row.ttfi.Err = missing.err
			return
		}
		var err error
		if img, err = e.hold(ctx, subject, program); err != nil {
			row.ttfi.Err = err
			e.logf("%s: %v", subject.Name(), err)
			return
		}
		images[subject.Format()] = img
	}
	row.checkpointTime.add(float64(img.taken.wall.Nanoseconds()))
	if row.write != nil {
		row.write.add(float64(img.memory) / img.taken.wall.Seconds())
	}
	if size, err := sizeOf(img.dir); err == nil {
		row.imageSize.add(float64(size))
	}
}

// add books one restore.
func (r *row) add(l life, img *image) {
	sum := sumOf(l.costs)
	for _, m := range []struct {
		s *Series
		d time.Duration
	}{{r.step, l.step}, {r.resident, l.resident}, {r.cpu, sum.cpu}} {
		if m.d > 0 {
			m.s.add(float64(m.d.Nanoseconds()))
		}
	}
	r.memory.add(float64(sum.peak))
	for _, part := range l.costs {
		r.result.detail(r.subject, detailCPU+part.part, "ns/op").add(float64(part.cpu.Nanoseconds()))
		r.result.detail(r.subject, detailMemory+part.part, "B").add(float64(part.peak))
	}
	if took := l.filling(); took > 0 {
		r.fill.add(float64(img.memory) / took.Seconds())
	}
	if before := paceBefore(img.process); before > 0 && l.pace > 0 {
		r.pace.add(float64(l.pace) / float64(before))
	}
}

// Details are named for the part that they are of.
const (
	detailCPU    = "CPU: "
	detailMemory = "memory: "
)

// dropEmpty takes out the series that nobody had anything for.
func (r *Result) dropEmpty() {
	some := map[string]bool{}
	for _, s := range r.Series {
		some[s.Measure] = some[s.Measure] || len(s.Values) > 0
	}
	kept := r.Series[:0]
	for _, s := range r.Series {
		if some[s.Measure] || s.Err != nil {
			kept = append(kept, s)
		}
	}
	r.Series = kept
}

// colourOf is the colour of a subject in all plots; 0 of those that are in one
// alone.
func colourOf(subject string) int {
	return 1 + slices.Index([]string{
		"ours-lazy", "ours-eager", "criu-lazy", "criu-eager", "cold start", "ours-lazy-disk", "ours-lazy-served", "ours-lazy-1Gbit",
		"c-spinning-handler", "ours-lazy-nofill", "ours-lazy-nofill-none-4KiB", "ours-lazy-nofill-zstd-64KiB", copiesName,
	}, subject)
}

// An absent subject is one that this machine does not have: a row that says so.
type absent struct {
	Subject
	name string
	err  error
}

func (a *absent) Name() string   { return a.name }
func (a *absent) Format() string { return a.name }

// subjects are all ways to restore that there are here.
func (e *Env) subjects() []Subject {
	var list []Subject
	for _, codec := range orThese(e.opts.Codecs, "lz4") {
		for _, chunk := range orThese(e.opts.Chunks, "64KiB") {
			base := ours{bin: e.opts.Lazyrestore, codec: codec, chunk: chunk, stats: e.path("stats")}
			eager, lazy, disk := base, base, base
			eager.eager, eager.stats = true, ""
			disk.disk, disk.stats = true, e.path("stats")
			over := base
			over.stats = e.path("stats")
			slow := over
			slow.stats = e.path("stats")
			list = append(list, &eager, &lazy, &disk, &served{ours: over}, &served{ours: slow, link: &slowLink})
		}
	}
	argv, err := findCRIU(e.opts.CRIU)
	if err == nil {
		return append(list, &criu{argv: argv}, &criu{argv: argv, lazy: true})
	}
	if e.opts.CRIU == "" && errors.Is(err, ErrNoCRIU) {
		err = ErrNoCRIU
	}
	return append(list, &absent{name: "criu", err: err})
}

// remote says that the memory of what a subject restores comes over a network,
// or from a disk.
func remote(subject Subject) bool {
	_, over := subject.(*served)
	return over || wantsDisk(subject)
}

func orThese(list []string, these ...string) []string {
	if len(list) == 0 {
		return these
	}
	return list
}
