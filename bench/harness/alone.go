package harness

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/bench/workload"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/lazypages"
)

// CRIU lets go of what it has restored by hardware breakpoints, which are
// performance counters of a task. For the first of those the kernel changes its
// code and waits until all processors have seen it (a grace period of RCU); a
// second after the last one it changes it back. So of restores half a second apart
// some wait for it and some do not, whichever comes first once it has been changed
// back. What is compared with CRIU's time to the first instruction is therefore taken
// both ways: where a restore comes alone, and where a counter is there already.

const (
	// forgets is after how long the kernel has forgotten that there were counters.
	forgets = 1500 * time.Millisecond
	// noticed is how long the first counter takes at least: a grace period is
	// milliseconds, one that is not the first some tens of microseconds.
	noticed = time.Millisecond
)

// An aloneFigure takes times to the first instruction both ways. Before every restore
// there is the same pause, whoever's it is, and the kernel has no counter after it
// unless somebody else has.
type aloneFigure struct {
	env    *Env
	result *Result
	turns  []*turn
	// first is what it takes to have a counter after the pause.
	first *Series
}

// compareAlone is the TTFI of over divided by that of under, where they come alone;
// beside it the same where a counter is there. The rest come alone too.
func (e *Env) compareAlone(ctx context.Context, program *workload.Program, over, under Subject, rest []Subject, more ...*turn) *Result {
	f := &aloneFigure{env: e, result: &Result{}, first: &Series{Name: "first-counter", Unit: "ns/op"}}
	alone, again := f.add(ctx, program, over, under)
	for _, subject := range rest {
		f.add(ctx, program, subject)
	}
	for _, t := range more {
		f.result.Series = append(f.result.Series, t.series)
	}
	e.rounds(ctx, e.runs(ttfiRuns), append(f.turns, more...)...)
	f.result.divide(alone[0], alone[1])
	f.result.beside("again", again[0], again[1])
	f.result.Series = append(f.result.Series, f.first)
	f.result.Notes = append(f.result.Notes, noteAlone(f.first))
	return f.result
}

// add adds the turns of subjects, of two both ways.
func (f *aloneFigure) add(ctx context.Context, program *workload.Program, subjects ...Subject) (alone, again []*Series) {
	var late []*turn
	for _, subject := range subjects {
		s := f.result.series(subject.Name(), "ns/op")
		second := &Series{Name: subject.Name() + "-again", Unit: "ns/op"}
		alone, again = append(alone, s), append(again, second)
		img, err := f.env.hold(ctx, subject, program)
		if s.Err = err; err != nil {
			continue
		}
		f.turns = append(f.turns, &turn{series: s, sample: func(ctx context.Context) (float64, error) {
			return f.alone(ctx, subject, img)
		}})
		late = append(late, &turn{series: second, sample: func(ctx context.Context) (float64, error) {
			return f.again(ctx, subject, img)
		}})
	}
	if len(subjects) > 1 {
		f.result.Series = append(f.result.Series, again...)
		f.turns = append(f.turns, late...)
	}
	return alone, again
}

// alone restores once where there was no counter for a while.
func (f *aloneFigure) alone(ctx context.Context, subject Subject, img *image) (float64, error) {
	if err := forget(ctx); err != nil {
		return 0, err
	}
	return f.env.ttfi(ctx, subject, img)
}

// again restores once where a breakpoint would not be the first counter. To have that
// one it waits as CRIU would have.
func (f *aloneFigure) again(ctx context.Context, subject Subject, img *image) (float64, error) {
	if err := forget(ctx); err != nil {
		return 0, err
	}
	began := time.Now()
	counter, err := lazypages.OpenCounter(0)
	if err == nil { // else CRIU can have no breakpoint either, and does without
		f.first.add(float64(time.Since(began).Nanoseconds()))
		defer unix.Close(counter)
	}
	return f.env.ttfi(ctx, subject, img)
}

// forget waits until the kernel has forgotten the counters that there were.
func forget(ctx context.Context) error {
	select {
	case <-time.After(forgets):
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the kernel to forget breakpoints: %w", ctx.Err())
	}
}

// noteAlone says what the first counter took, and whether it was the first: where
// somebody else has one the figure is that of -again, and nothing else shows it.
func noteAlone(first *Series) string {
	const again = "-again: where the kernel has a counter of a task already, as within a second of another restore"
	others := 0
	for _, took := range first.Values {
		if time.Duration(took) < noticed {
			others++
		}
	}
	switch {
	case len(first.Values) == 0:
		return again + "; there were none to be had here"
	case others == 0:
		return fmt.Sprintf("%s; the first takes %s", again, first.Show(first.Median()))
	default:
		return fmt.Sprintf("NOT ALONE in %d of %d rounds: the first counter took %s, so another was there (a task that CRIU has restored has some until it ends, perf stat has), and what is to come alone was timed as -again",
			others, len(first.Values), first.Show(first.Median()))
	}
}

// criuTTFI is of restores by CRIU, with our daemon and with CRIU's.
func criuTTFI(ctx context.Context, env *Env) (*Result, error) {
	program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: env.mib(256)})
	if err != nil {
		return nil, err
	}
	theirs, own, err := env.criuPair(false)
	if err != nil {
		return nil, err
	}
	return env.compareAlone(ctx, program, own, theirs, nil), nil
}
