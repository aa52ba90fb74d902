package harness

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/workload"
)

func touchFigures() []*Figure {
	return []*Figure{
		{
			Name: "touch-page", Title: "one random touch, no fill, 4 KiB chunks, codec none: ours over a C handler that spins",
			Bound: 2, Aim: 1.2, Limit: 15 * time.Minute, measure: touchPage,
		},
		{
			Name: "touch-chunk", Title: "one random touch, no fill, 64 KiB chunks, LZ4: ours over a C handler that spins",
			Bound: 3.5, Aim: 2, Limit: 15 * time.Minute, measure: touchChunk,
		},
		{
			Name: "touches", Title: "mean of 2,000 random touches in 1 GiB with the fill, LZ4: ours over criu lazy-pages",
			Bound: 0.5, Aim: 0.25, Limit: 15 * time.Minute, measure: touches,
		},
		{
			Name: "sweep", Title: "touch all of 2 GiB once with the fill, LZ4: our rate over bulk UFFDIO_COPY on one core",
			Bound: 0.4, Aim: 0.9, Higher: true, Limit: 15 * time.Minute, measure: sweep,
		},
	}
}

const (
	touchRuns  = 7
	sweepRuns  = 5
	touchCount = 2000
	touchMiB   = 1024
	sweepMiB   = 2048
)

// touchPage compares the fault alone: no decoding, no neighbours, no fill.
func touchPage(ctx context.Context, env *Env) (*Result, error) {
	return env.touchOverFloor(ctx, &ours{bin: env.opts.Lazyrestore, codec: "none", chunk: "4KiB", noBackground: true})
}

// touchChunk is the same with the decoding of a chunk.
func touchChunk(ctx context.Context, env *Env) (*Result, error) {
	return env.touchOverFloor(ctx, &ours{bin: env.opts.Lazyrestore, noBackground: true})
}

func (e *Env) touchOverFloor(ctx context.Context, subject Subject) (*Result, error) {
	program, err := e.builder.Mappings(ctx, workload.MappingsOptions{MiB: e.mib(touchMiB), Touches: touchCount})
	if err != nil {
		return nil, err
	}
	result := &Result{}
	own, floor := result.series(subject.Name(), "ns/op"), result.series("c-spinning-handler", "ns/op")
	e.rounds(ctx, e.runs(touchRuns),
		e.turnOf(ctx, subject, program, own, func(ctx context.Context, img *image) (float64, error) {
			return e.touchMean(ctx, subject, img, false)
		}),
		&turn{series: floor, sample: func(ctx context.Context) (float64, error) {
			lines, err := e.floor(ctx, e.mib(touchMiB))
			return float64(lines["touches"]["mean_ns"]), err
		}})
	return result.divide(own, floor), nil
}

// touches compares the whole way with CRIU's, both filling in the background.
// The first restore of each is looked at to the last byte.
func touches(ctx context.Context, env *Env) (*Result, error) {
	program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: env.mib(touchMiB), Touches: touchCount})
	if err != nil {
		return nil, err
	}
	theirs, own, extra, err := env.lazySubjects()
	if err != nil {
		return nil, err
	}
	result := &Result{}
	var turns []*turn
	for _, subject := range append([]Subject{theirs, own}, extra...) {
		series := result.series(subject.Name(), "ns/op")
		turns = append(turns, env.turnOf(ctx, subject, program, series,
			func(ctx context.Context, img *image) (float64, error) {
				return env.touchMean(ctx, subject, img, len(series.Values) == 0)
			}))
	}
	env.rounds(ctx, env.runs(touchRuns), turns...)
	return result.divide(result.Series[1], result.Series[0]), nil
}

// touchMean restores, has the program touch random pages, and gives the mean
// of what a touch took, in nanoseconds.
func (e *Env) touchMean(ctx context.Context, subject Subject, img *image, verify bool) (float64, error) {
	restored, err := e.restore(ctx, subject, img)
	if err != nil {
		return 0, err
	}
	lines, err := restored.touch(ctx, "touches", verify)
	if stopped := restored.Stop(); err == nil {
		err = stopped
	}
	return float64(lines["mean_ns"]), err
}

// touch has the program do its touches and waits for what it says of them.
func (r *Restored) touch(ctx context.Context, line string, verify bool) (map[string]int64, error) {
	watch, err := r.watch() // while it touches this process does nothing
	if err != nil {
		return nil, err
	}
	defer watch.Close()
	if err := r.Signal(syscall.SIGUSR1); err != nil {
		return nil, err
	}
	values, err := r.awaitLine(ctx, watch, line)
	if err == nil && verify {
		err = r.Verify(ctx)
	}
	return values, err
}

// sweep is how fast all of the memory comes, from the first instruction to the
// last page touched.
func sweep(ctx context.Context, env *Env) (*Result, error) {
	program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: env.mib(sweepMiB), Touches: -1})
	if err != nil {
		return nil, err
	}
	subject := &ours{bin: env.opts.Lazyrestore}
	result := &Result{}
	own, floor := result.series(subject.Name(), "B/s"), result.series("bulk-uffdio-copy", "B/s")
	plain := result.series("memcpy", "B/s")
	env.rounds(ctx, env.runs(sweepRuns),
		env.turnOf(ctx, subject, program, own, func(ctx context.Context, img *image) (float64, error) {
			return env.sweepRate(ctx, subject, img, len(own.Values) == 0)
		}),
		&turn{series: floor, sample: func(ctx context.Context) (float64, error) {
			lines, err := env.floor(ctx, env.mib(sweepMiB)/2)
			if err != nil {
				return 0, err
			}
			plain.add(rateOf(lines["memcpy"]))
			return rateOf(lines["bulk_copy"]), nil
		}})
	return result.divide(own, floor), nil
}

func (e *Env) sweepRate(ctx context.Context, subject Subject, img *image, verify bool) (float64, error) {
	restored, err := e.restore(ctx, subject, img)
	if err != nil {
		return 0, err
	}
	line, err := restored.touch(ctx, "sweep", verify)
	if stopped := restored.Stop(); err == nil {
		err = stopped
	}
	if err != nil {
		return 0, err
	}
	took := time.Duration(line["end_ns"] - restored.First.UnixNano())
	return float64(line["bytes"]) / took.Seconds(), nil
}

// floor runs the C floor and reads its lines, by their first word.
func (e *Env) floor(ctx context.Context, mib int, more ...string) (map[string]map[string]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	bin, err := e.builder.C(ctx, "floor")
	if err != nil {
		return nil, err
	}
	text, err := exec.CommandContext(ctx, bin, append([]string{"-s", strconv.Itoa(mib), "-t", strconv.Itoa(touchCount)}, more...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("the C floor: %w", err)
	}
	lines := map[string]map[string]int64{}
	for _, word := range []string{"touches", "bulk_copy", "memcpy"} {
		line, ok := lineOf(string(text), word)
		if !ok {
			return nil, fmt.Errorf("the C floor: no %s in what it printed: %q", word, text)
		}
		lines[word] = numbers(line)
	}
	return lines, nil
}

func rateOf(line map[string]int64) float64 {
	return float64(line["bytes"]) / time.Duration(line["ns"]).Seconds()
}
