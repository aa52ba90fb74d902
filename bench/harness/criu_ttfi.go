package harness

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/bench/workload"
)

// CRIU lets go of what it has restored by hardware breakpoints, which are
// performance counters of a task. For the first of those the kernel changes its
// code and waits until all processors have seen it (a grace period of RCU); a
// second after the last one it changes it back. So of restores half a second apart
// some wait for it and some do not, whichever comes first once it has been changed
// back.

const (
	criuTTFIRuns = 21
	// forgets is after how long the kernel has forgotten that there were breakpoints.
	forgets = 1500 * time.Millisecond
)

// criuTTFI restores as whoever restores the first task of a machine does, and that is
// the figure: no breakpoint was there for a while. Beside it nobody ever waits for the
// first, as where a task that CRIU has restored still runs: it keeps its breakpoints.
func criuTTFI(ctx context.Context, env *Env) (*Result, error) {
	program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: env.mib(256)})
	if err != nil {
		return nil, err
	}
	theirs, own, err := env.criuPair(false)
	if err != nil {
		return nil, err
	}
	result := env.compareSubjects(ctx, program, criuTTFIRuns, "ns/op", []Subject{theirs, own, &repeated{theirs}, &repeated{own}},
		func(ctx context.Context, subject Subject, img *image, _ bool) (float64, error) {
			if r, ok := subject.(*repeated); ok {
				return r.ttfi(ctx, env, img)
			}
			return env.ttfiAlone(ctx, subject, img)
		})
	result.Notes = append(result.Notes, fmt.Sprintf("-again: while the kernel has a breakpoint, as within a second of another restore: %.2f",
		result.Series[3].Median()/result.Series[2].Median()))
	return result, nil
}

// ttfiAlone restores once where there was no breakpoint for a while.
func (e *Env) ttfiAlone(ctx context.Context, subject Subject, img *image) (float64, error) {
	select {
	case <-time.After(forgets):
		return e.ttfi(ctx, subject, img)
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for the kernel to forget breakpoints: %w", ctx.Err())
	}
}

// A repeated subject is restored where a breakpoint would not be the first.
type repeated struct{ Subject }

func (r *repeated) Name() string { return r.Subject.Name() + "-again" }

func (r *repeated) ttfi(ctx context.Context, env *Env, img *image) (float64, error) {
	counter, err := unix.PerfEventOpen(&unix.PerfEventAttr{
		Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_DUMMY, Size: unix.PERF_ATTR_SIZE_VER0,
		Bits: unix.PerfBitDisabled | unix.PerfBitExcludeKernel | unix.PerfBitExcludeHv,
	}, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err == nil { // else CRIU can have no breakpoint either, and does without
		defer unix.Close(counter)
	}
	return env.ttfi(ctx, r.Subject, img)
}
