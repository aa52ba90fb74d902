package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/plot"
	"github.com/lazyrestore/lazyrestore/bench/workload"
)

func phaseFigures() []*Figure {
	return []*Figure{{
		Name: "phases", Title: "where the time to the first instruction goes, by restore --trace-file",
		Limit: 10 * time.Minute, measure: phases,
	}}
}

// phaseNames are the spans of a trace that lie one after the other on the way to
// the first instruction, and what they are called here.
var phaseNames = []struct{ span, name string }{
	{"start of the command (processor time)", "start of the command"},
	{"read process.bin", "read the state"},
	{"open files and shared objects", "open files"},
	{"plan the program", "plan"},
	{"clone, exec the stub, seize", "clone and exec"},
	{"plan the rest", "plan the rest"},
	{"wait for the process to build itself", "the process builds itself"},
	{"seize threads, set registers", "registers"},
	{"wait for what was prepared beside", "wait for the manifest"},
	{"wait for the pager", "wait for the pager"},
	{"detach", "detach"},
}

const (
	otherPhase = "between these"
	firstPhase = "first faults"
)

// phases takes the trace of restores of several programs apart.
func phases(ctx context.Context, env *Env) (*Result, error) {
	result := &Result{Notes: []string{"tracing itself takes part of it: the process reads the clock before each of its system calls"}}
	p := &plot.Plot{
		Name: "ttfi-phases", Title: "Where the time to the first instruction goes",
		X: plot.Axis{Label: "time, medians", Unit: plot.Nanoseconds},
	}
	traced := &ours{bin: env.opts.Lazyrestore, trace: env.path("trace")}
	var turns []*turn
	for _, build := range []func() (*workload.Program, error){
		func() (*workload.Program, error) {
			return env.builder.Mappings(ctx, workload.MappingsOptions{MiB: env.mib(256)})
		},
		func() (*workload.Program, error) {
			return env.builder.Mappings(ctx, workload.MappingsOptions{MiB: env.mib(256), Mappings: 1000, Threads: 63})
		},
		func() (*workload.Program, error) {
			return env.builder.LAMMPS(ctx, workload.LAMMPSOptions{Steps: 100000, Ready: 3})
		},
	} {
		program, err := build()
		if err != nil {
			result.measure("lammps", measureTTFI, "ns/op").Err = err
			continue
		}
		ttfi := result.measure(program.Name, measureTTFI, "ns/op")
		parts := map[string]*Series{}
		for _, phase := range phaseNames {
			parts[phase.name] = result.measure(program.Name, phase.name, "ns/op")
		}
		parts[otherPhase] = result.measure(program.Name, otherPhase, "ns/op")
		parts[firstPhase] = result.measure(program.Name, firstPhase, "ns/op")
		turns = append(turns, env.turnOf(ctx, traced, program, ttfi, func(ctx context.Context, img *image) (float64, error) {
			return env.phasesOf(ctx, traced, img, parts)
		}))
	}
	env.rounds(ctx, env.runs(7), turns...)
	for _, name := range result.Subjects() {
		bar := plot.Bar{Name: name}
		for _, s := range result.Series {
			if s.Name == name && s.Measure != measureTTFI && len(s.Values) > 0 {
				bar.Parts = append(bar.Parts, plot.Part{Name: s.Measure, Value: s.Median()})
			}
		}
		if len(bar.Parts) > 0 {
			p.Bars = append(p.Bars, bar)
		}
	}
	result.Plots = append(result.Plots, p)
	return result, nil
}

// phasesOf restores once and books the spans of the trace.
func (e *Env) phasesOf(ctx context.Context, traced *ours, img *image, parts map[string]*Series) (float64, error) {
	if err := os.Remove(traced.trace); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	restored, err := e.restore(ctx, traced, img)
	if err != nil {
		return 0, err
	}
	err = restored.awaitFile(ctx, traced.trace)
	if stopped := restored.Stop(); err == nil {
		err = stopped
	}
	if err != nil {
		return 0, err
	}
	spans, runs, err := readTrace(traced.trace)
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for _, phase := range phaseNames {
		parts[phase.name].add(spans[phase.span])
		sum += spans[phase.span]
	}
	parts[otherPhase].add(max(runs-sum, 0))
	parts[firstPhase].add(max(float64(restored.TTFI)-runs, 0))
	return float64(restored.TTFI), nil
}

// readTrace gives the spans of the trace's first row, and when the process ran,
// in nanoseconds.
func readTrace(file string) (spans map[string]float64, runs float64, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, 0, err
	}
	var trace struct {
		TraceEvents []struct {
			Name string  `json:"name"`
			TID  int     `json:"tid"`
			TS   float64 `json:"ts"`
			Dur  float64 `json:"dur"`
		}
	}
	if err := json.Unmarshal(text, &trace); err != nil {
		return nil, 0, fmt.Errorf("trace: %w", err)
	}
	spans = map[string]float64{}
	for _, event := range trace.TraceEvents {
		if event.TID != 1 {
			continue
		}
		spans[event.Name] += 1e3 * event.Dur
		if event.Name == "the process runs" {
			runs = 1e3 * event.TS
		}
	}
	if runs == 0 {
		return nil, 0, errors.New("trace: the process does not run in it")
	}
	return spans, runs, nil
}
