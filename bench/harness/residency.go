package harness

import (
	"context"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/plot"
	"github.com/lazyrestore/lazyrestore/bench/workload"
)

func residencyFigures() []*Figure {
	return []*Figure{{
		Name: "residency", Title: "how the memory of a restored program comes, nobody touching it",
		Limit: 10 * time.Minute, measure: residency,
	}}
}

// residency follows the resident set of the program from the start of the
// restore command on. The curve of a subject is that of the restore whose end
// is the median.
func residency(ctx context.Context, env *Env) (*Result, error) {
	program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: env.mib(512), Touches: -1})
	if err != nil {
		return nil, err
	}
	result := &Result{}
	images := map[string]*image{}
	curves := map[string][]curve{}
	var turns []*turn
	for _, subject := range env.subjects() {
		row := result.row(subject.Name())
		if env.hold1(ctx, subject, program, images, row); row.ttfi.Err != nil {
			continue
		}
		img := images[subject.Format()]
		turns = append(turns, &turn{series: row.ttfi, sample: func(ctx context.Context) (float64, error) {
			watch := watchResident(img.process.Pid)
			l, err := env.follow(ctx, subject, img)
			c := watch.stop()
			if err != nil {
				return 0, err
			}
			curves[subject.Name()] = append(curves[subject.Name()], c.since(l.began, l.resident))
			row.add(l, img)
			return float64(l.ttfi.Nanoseconds()), nil
		}})
	}
	env.rounds(ctx, env.runs(3), turns...)
	result.dropEmpty()
	p := &plot.Plot{
		Name: "residency", Title: "Memory that is there, over time",
		X:    plot.Axis{Label: "time since the restore command was started", Unit: plot.Nanoseconds},
		Y:    plot.Axis{Label: "resident set of the program", Unit: plot.Bytes},
		Note: "An eager restore runs when its curve has reached the top, a lazy one at its first point.",
	}
	for _, name := range result.Subjects() {
		if all := curves[name]; len(all) > 0 {
			sort.Slice(all, func(i, j int) bool { return all[i].resident < all[j].resident })
			p.Lines = append(p.Lines, plot.Line{Name: name, Colour: colourOf(name), Points: all[len(all)/2].points})
		}
	}
	result.Plots = append(result.Plots, p)
	return result, nil
}

// A curve is how a process's resident set grew.
type curve struct {
	resident time.Duration // when all was there
	points   []plot.Point
}

// A residentWatch samples the resident set of a process that is about to be.
type residentWatch struct {
	end  chan struct{}
	done sync.WaitGroup
	at   []time.Time
	size []float64
}

func watchResident(pid int) *residentWatch {
	w := &residentWatch{end: make(chan struct{})}
	path := "/proc/" + strconv.Itoa(pid) + "/statm"
	w.done.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			if text, err := os.ReadFile(path); err == nil {
				fields := strings.Fields(string(text))
				if pages, err := strconv.ParseFloat(fields[1], 64); err == nil {
					w.at, w.size = append(w.at, time.Now()), append(w.size, pages*float64(os.Getpagesize()))
				}
			}
			select {
			case <-tick.C:
			case <-w.end:
				return
			}
		}
	})
	return w
}

func (w *residentWatch) stop() *residentWatch {
	close(w.end)
	w.done.Wait()
	return w
}

// since is the curve up to a little after all was there, in no more points than
// a picture can show.
func (w *residentWatch) since(began time.Time, resident time.Duration) curve {
	c := curve{resident: resident}
	last := resident + resident/20
	step := last / 200
	next, most := time.Duration(0), 0.0
	for i, at := range w.at {
		t := at.Sub(began)
		if t > last || t > resident && w.size[i] < most/2 { // it has been ended
			break
		}
		most = max(most, w.size[i])
		if t >= next {
			c.points = append(c.points, plot.Point{X: float64(t), Y: w.size[i]})
			next = t + step
		}
	}
	return c
}
