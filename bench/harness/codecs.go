package harness

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/plot"
	"github.com/lazyrestore/lazyrestore/bench/workload"
)

func codecFigures() []*Figure {
	return []*Figure{{
		Name: "codecs", Title: "what codec and chunk size cost: image, checkpoint, TTFI, one random touch without a fill",
		Long: true, Limit: 10 * time.Minute, measure: codecs,
	}}
}

var (
	allCodecs = []string{"none", "lz4", "s2", "zstd"}
	allChunks = []string{"16KiB", "64KiB", "256KiB"}
)

// codecs has one program written and brought back with each codec and chunk
// size, or those asked for.
func codecs(ctx context.Context, env *Env) (*Result, error) {
	program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: env.mib(256), Touches: touchCount})
	if err != nil {
		return nil, err
	}
	running, err := env.start(ctx, program)
	if err != nil {
		return nil, err
	}
	result := &Result{Notes: []string{
		"of a program half of whose memory is random: real memory shrinks more, and zstd gains most by that",
	}}
	var turns []*turn
	for _, codec := range orThese(env.opts.Codecs, allCodecs...) {
		for _, chunk := range orThese(env.opts.Chunks, allChunks...) {
			subject := &ours{bin: env.opts.Lazyrestore, codec: codec, chunk: chunk, noBackground: true}
			turns = append(turns, env.codecTurn(ctx, result, subject, program, running))
		}
	}
	env.rounds(ctx, env.runs(3), turns...)
	result.Plots = append(result.Plots, result.codecPlot(env))
	return result, env.stop(running)
}

// codecTurn has the subject write the process that runs, and bring the program
// back out of an image of its own.
func (e *Env) codecTurn(ctx context.Context, result *Result, subject *ours, program *workload.Program, running *workload.Process) *turn {
	name := subject.Format()
	size, took := result.measure(name, measureImage, "B"), result.measure(name, measureCheckpoint, "ns/op")
	rate := result.measure(name, measureWrite, "B/s")
	ttfi, touch := result.measure(name, measureTTFI, "ns/op"), result.measure(name, measureTouch, "ns/op")
	return e.turnOf(ctx, subject, program, ttfi, func(ctx context.Context, img *image) (float64, error) {
		dir := e.path(name)
		taken, err := e.checkpoint(ctx, subject, running.Pid, dir, true)
		bytes, err2 := sizeOf(dir)
		if err := errors.Join(err, err2, os.RemoveAll(dir)); err != nil {
			return 0, err
		}
		size.add(float64(bytes))
		took.add(float64(taken.wall.Nanoseconds()))
		rate.add(float64(img.memory) / taken.wall.Seconds())
		restored, err := e.restore(ctx, subject, img)
		if err != nil {
			return 0, err
		}
		said, err := restored.touch(ctx, "touches", len(touch.Values) == 0)
		if err := errors.Join(err, restored.Stop()); err != nil {
			return 0, err
		}
		touch.add(float64(said["mean_ns"]))
		return float64(restored.TTFI.Nanoseconds()), nil
	})
}

const measureTouch = "mean touch"

// codecPlot sets what a touch waits against the size of a chunk.
func (r *Result) codecPlot(env *Env) *plot.Plot {
	p := &plot.Plot{
		Name: "codecs", Title: "The size of a chunk, and how long a touch waits",
		X: plot.Axis{Label: "chunk size", Unit: plot.Bytes, Log: true},
		Y: plot.Axis{Label: "mean of 2,000 random touches, no fill", Unit: plot.Nanoseconds},
	}
	for _, codec := range orThese(env.opts.Codecs, allCodecs...) {
		line := plot.Line{Name: codec}
		for _, chunk := range orThese(env.opts.Chunks, allChunks...) {
			touch := r.Find((&ours{codec: codec, chunk: chunk}).Format(), measureTouch)
			bytes := chunkBytes(chunk)
			if touch == nil || len(touch.Values) == 0 || bytes == 0 {
				continue
			}
			low, high := touch.Spread()
			line.Points = append(line.Points, plot.Point{X: bytes, Y: touch.Median(), Low: low, High: high})
		}
		if len(line.Points) > 0 {
			p.Lines = append(p.Lines, line)
		}
	}
	return p
}

// chunkBytes reads a size as --chunk-size has it; 0 of what it does not know.
func chunkBytes(size string) float64 {
	end := strings.IndexFunc(size, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(size)
	}
	n, err := strconv.ParseFloat(size[:end], 64)
	if err != nil {
		return 0
	}
	unit, known := map[string]float64{"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[strings.ToUpper(size[end:min(end+1, len(size))])]
	if !known {
		return 0
	}
	return n * unit
}
