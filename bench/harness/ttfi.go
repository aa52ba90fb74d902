package harness

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/workload"
)

func ttfiFigures() []*Figure {
	return []*Figure{
		{
			Name: "ttfi", Title: "TTFI, 100 mappings: criu restore --lazy-pages over ours",
			Bound: 3, Aim: 5, Higher: true, Limit: 15 * time.Minute, measure: ttfiMappings,
		},
		{
			Name: "ttfi-lammps", Long: true, Title: "TTFI, LAMMPS: criu restore --lazy-pages over ours",
			Bound: 5, Aim: 12, Higher: true, Limit: 15 * time.Minute, measure: ttfiLAMMPS,
		},
		{
			Name: "ttfi-size", Title: "TTFI of ours, 4 GiB of memory over 256 MiB",
			Bound: 1.3, Aim: 1.05, Limit: 15 * time.Minute, measure: ttfiSize,
		},
	}
}

const ttfiRuns = 11

// lazySubjects is CRIU's lazy restore and ours, and those asked for besides.
func (e *Env) lazySubjects() (theirs, own Subject, extra []Subject, err error) {
	argv, err := findCRIU(e.opts.CRIU)
	if err != nil {
		return nil, nil, nil, err
	}
	for _, name := range e.opts.Extra {
		switch name {
		case "criu-eager":
			extra = append(extra, &criu{argv: argv})
		case "ours-eager":
			extra = append(extra, &ours{bin: e.opts.Lazyrestore, eager: true})
		case "ours-zstd":
			extra = append(extra, &ours{bin: e.opts.Lazyrestore, codec: "zstd"})
		case "cold": // nothing is restored: see compareTTFI
		default:
			return nil, nil, nil, fmt.Errorf("no subject is called %q: criu-eager, ours-eager, ours-zstd, cold", name)
		}
	}
	return &criu{argv: argv, lazy: true}, &ours{bin: e.opts.Lazyrestore}, extra, nil
}

func ttfiMappings(ctx context.Context, env *Env) (*Result, error) {
	program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: env.mib(256)})
	if err != nil {
		return nil, err
	}
	return env.compareTTFI(ctx, program)
}

// lammpsSize is the edge of the box at which LAMMPS takes about 690 MB.
const lammpsSize = 78

func ttfiLAMMPS(ctx context.Context, env *Env) (*Result, error) {
	program, err := env.builder.LAMMPS(ctx, workload.LAMMPSOptions{Size: lammpsSize, Steps: 100000, Ready: 3})
	if err != nil {
		return nil, err
	}
	return env.compareTTFI(ctx, program)
}

// compareTTFI is CRIU's time to first instruction over ours.
func (e *Env) compareTTFI(ctx context.Context, program *workload.Program) (*Result, error) {
	theirs, own, extra, err := e.lazySubjects()
	if err != nil {
		return nil, err
	}
	var more []*turn
	if slices.Contains(e.opts.Extra, "cold") {
		more = append(more, &turn{
			series: &Series{Name: "cold-start", Unit: "ns/op"},
			sample: func(ctx context.Context) (float64, error) { return e.cold(ctx, program) },
		})
	}
	return e.compareAlone(ctx, program, theirs, own, extra, more...), nil
}

// ttfi restores once, and ends what was restored.
func (e *Env) ttfi(ctx context.Context, subject Subject, img *image) (float64, error) {
	restored, err := e.restore(ctx, subject, img)
	if err != nil {
		return 0, err
	}
	return float64(restored.TTFI.Nanoseconds()), restored.Stop()
}

// ttfiSize compares ours with itself: the time must not grow with the memory.
func ttfiSize(ctx context.Context, env *Env) (*Result, error) {
	large, small := env.mib(4096), min(env.mib(4096)/2, 256)
	free, err := availableMemory()
	if err != nil {
		return nil, err
	}
	// The process and its image in tmpfs, at worst uncompressed, with room.
	if need := uint64(large) << 20 * 5 / 2; free < need && env.onTmpfs() {
		return nil, fmt.Errorf("this needs %d MiB of free memory, or --dir on a disk", need>>20)
	}
	subject := &ours{bin: env.opts.Lazyrestore}
	result := &Result{}
	var turns []*turn
	for _, mib := range []int{large, small} {
		program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: mib})
		if err != nil {
			return nil, err
		}
		series := result.series(fmt.Sprintf("%s-%dMiB", subject.Name(), mib), "ns/op")
		turns = append(turns, env.turnOf(ctx, subject, program, series,
			func(ctx context.Context, img *image) (float64, error) { return env.ttfi(ctx, subject, img) }))
	}
	env.rounds(ctx, env.runs(2*ttfiRuns), turns...)
	return result.divide(result.Series[0], result.Series[1]), nil
}
