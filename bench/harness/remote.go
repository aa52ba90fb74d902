package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/workload"
)

// remoteFigures are of restores from a page server.
func remoteFigures() []*Figure {
	return []*Figure{
		{
			Name: "remote-ttfi", Title: "TTFI from a page server on loopback, less that from a directory: milliseconds",
			Bound: 5, Aim: 1, Limit: 10 * time.Minute, measure: remoteTTFI,
		},
		{
			Name: "remote-trips", Title: "TTFI from a page server 10 ms away: what it is more, in round trips, and one for the connection, which the proxy does not delay",
			Bound: 5, Aim: 3, Limit: 10 * time.Minute, measure: remoteTrips,
		},
		{
			Name: "remote-touch", Title: "one random touch from a page server on loopback, no fill, LZ4, less one from a directory: over a bare TCP request and reply of the same bytes",
			Bound: 2, Aim: 1.2, Limit: 10 * time.Minute, measure: remoteTouch,
		},
		{
			Name: "remote-busy", Long: true, Title: "99th percentile of faults from a page server on loopback: while the fill streams over without",
			Bound: 3, Aim: 1.5, Limit: 10 * time.Minute, measure: remoteBusy,
		},
		{
			Name: "remote-fill", Long: true, Title: "fill from a page server over a link of 1 Gbit/s: stored bytes a second over what the line carries for TCP",
			Bound: 0.95, Aim: 0.98, Higher: true, Limit: 10 * time.Minute, measure: remoteFill,
		},
		{
			Name: "remote-many", Long: true, Title: "32 restores of one image at once from one page server on loopback: its bytes a second, over a plain TCP copy of the same that 32 processes keep",
			Bound: 0.6, Aim: 0.9, Higher: true, Limit: 10 * time.Minute, measure: remoteMany,
		},
	}
}

const remoteRuns = 9

// difference fills in the value: what over is more than under, in units.
func (r *Result) difference(over, under *Series, unit float64) *Result {
	rounds := make([]float64, 0, len(over.Values))
	for i := range min(len(over.Values), len(under.Values)) {
		rounds = append(rounds, (over.Values[i]-under.Values[i])/unit)
	}
	r.Value = (over.Median() - under.Median()) / unit
	r.Low, r.High = quantile(rounds, 0.25), quantile(rounds, 0.75)
	return r
}

// compare takes the same sample of two subjects, from one program.
func (e *Env) compare(ctx context.Context, program *workload.Program, runs int, unit string, a, b Subject,
	sample func(ctx context.Context, subject Subject, img *image) (float64, error),
) *Result {
	result := &Result{}
	var turns []*turn
	for _, subject := range []Subject{a, b} {
		turns = append(turns, e.turnOf(ctx, subject, program, result.series(subject.Name(), unit),
			func(ctx context.Context, img *image) (float64, error) { return sample(ctx, subject, img) }))
	}
	e.rounds(ctx, e.runs(runs), turns...)
	return result
}

func remoteTTFI(ctx context.Context, env *Env) (*Result, error) {
	program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: env.mib(256)})
	if err != nil {
		return nil, err
	}
	own := ours{bin: env.opts.Lazyrestore}
	r := env.compare(ctx, program, remoteRuns, "ns/op", &served{ours: own}, &own, env.ttfi)
	return r.difference(r.Series[0], r.Series[1], float64(time.Millisecond)), nil
}

// far is a network without limits to its rate, on which all takes so long.
func far(name string, oneWay time.Duration) *link {
	return &link{name: name, bytesSecond: 1e12, delay: oneWay}
}

func remoteTrips(ctx context.Context, env *Env) (*Result, error) {
	const trip = 10 * time.Millisecond
	program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: env.mib(256)})
	if err != nil {
		return nil, err
	}
	own := ours{bin: env.opts.Lazyrestore}
	r := env.compare(ctx, program, remoteRuns, "ns/op",
		&served{ours: own, link: far("10ms", trip/2)}, &served{ours: own, link: far("0ms", 0)}, env.ttfi)
	r.difference(r.Series[0], r.Series[1], float64(trip))
	r.Value, r.Low, r.High = r.Value+1, r.Low+1, r.High+1
	return r, nil
}

func remoteTouch(ctx context.Context, env *Env) (*Result, error) {
	mib := env.mib(512)
	program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: mib, Touches: touchCount})
	if err != nil {
		return nil, err
	}
	own := ours{bin: env.opts.Lazyrestore, noBackground: true}
	subjects := []Subject{&served{ours: own}, &own}
	result := &Result{}
	var turns []*turn
	reply := 0 // bytes of a frame
	for _, subject := range subjects {
		series := result.series(subject.Name(), "ns/op")
		turns = append(turns, env.turnOf(ctx, subject, program, series, func(ctx context.Context, img *image) (float64, error) {
			if info, err := os.Stat(filepath.Join(img.dir, "pages.lz4")); err == nil {
				reply = int(info.Size()) / (mib * 16)
			}
			return env.touchMean(ctx, subject, img, len(series.Values) == 0)
		}))
	}
	bare, asleep := result.series("bare-tcp", "ns/op"), result.series("bare-tcp-asleep", "ns/op")
	turns = append(turns, &turn{series: bare, sample: func(ctx context.Context) (float64, error) {
		return env.bareTCP(ctx, reply, true)
	}}, &turn{series: asleep, sample: func(ctx context.Context) (float64, error) {
		return env.bareTCP(ctx, reply, false)
	}})
	env.rounds(ctx, env.runs(touchRuns), turns...)
	result.Notes = append(result.Notes,
		fmt.Sprintf("bare-tcp: replies of %d bytes, two processes in C; its client spins, as the pager does; -asleep: it sleeps, and has to be woken", reply))
	extra := &Series{}
	for i := range min(len(result.Series[0].Values), len(result.Series[1].Values)) {
		extra.add(result.Series[0].Values[i] - result.Series[1].Values[i])
	}
	return result.divide(extra, bare), nil
}

// statsOf is what a restore's --stats say, once they are there.
func (r *Restored) statsOf(ctx context.Context, file string) (map[string]any, error) {
	for {
		text, err := os.ReadFile(file)
		if err == nil {
			var values map[string]any
			return values, json.Unmarshal(text, &values)
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for %s: %w", file, ctx.Err())
		}
	}
}

// faultTail is the 99th percentile of the faults of a program that touches
// random pages from its first instruction on, in nanoseconds.
func (e *Env) faultTail(ctx context.Context, subject Subject, stats string, img *image) (float64, error) {
	restored, err := e.restore(ctx, subject, img)
	if err != nil {
		return 0, err
	}
	_, err = restored.touch(ctx, "touches", false)
	if stopped := restored.Stop(); err == nil {
		err = stopped
	}
	if err != nil {
		return 0, err
	}
	values, err := restored.statsOf(ctx, stats)
	if err != nil {
		return 0, err
	}
	p99, ok := values["fault_p99_us"].(float64)
	if !ok {
		return math.NaN(), fmt.Errorf("%s: no fault_p99_us", stats)
	}
	return p99 * 1000, nil
}

func remoteBusy(ctx context.Context, env *Env) (*Result, error) {
	program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: env.mib(1024), Touches: touchCount})
	if err != nil {
		return nil, err
	}
	busy := &served{ours: ours{bin: env.opts.Lazyrestore, stats: env.path("busy.json")}}
	idle := &served{ours: ours{bin: env.opts.Lazyrestore, stats: env.path("idle.json"), noBackground: true}}
	r := env.compare(ctx, program, touchRuns, "ns/op", busy, idle, func(ctx context.Context, subject Subject, img *image) (float64, error) {
		return env.faultTail(ctx, subject, subject.(*served).stats, img)
	})
	return r.divide(r.Series[0], r.Series[1]), nil
}
