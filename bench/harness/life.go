package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/workload"
)

// A life is what there is to tell of one restore, times from the start of the
// command on.
type life struct {
	began                time.Time     // when the command was started
	ttfi, step, resident time.Duration // step and resident 0: none was seen
	// pace is the time of a step once all is resident; 0 where steps do not say
	// when they end.
	pace time.Duration
	// costs are those of the parts that restored it, until all was there.
	costs []cost
}

// filling is how long memory came: after the first instruction, or, where all
// was there by then, before it.
func (l *life) filling() time.Duration {
	if l.ttfi > 0 && l.resident > l.ttfi {
		return l.resident - l.ttfi
	}
	return l.resident
}

// stepPatience is how long a step may take. The user's own program may be
// one that says nothing for longer.
const stepPatience = 30 * time.Second

// paceSteps is how many steps the pace is taken from.
const paceSteps = 4

// follow restores once and follows the program until all of its memory is there.
func (e *Env) follow(ctx context.Context, subject Subject, img *image) (life, error) {
	r, err := e.restore(ctx, subject, img)
	if err != nil {
		return life{}, err
	}
	l, err := r.toTheEnd(ctx, subject)
	if stopped := r.Stop(); err == nil {
		err = stopped
	}
	return l, err
}

func (r *Restored) toTheEnd(ctx context.Context, subject Subject) (life, error) {
	l := life{began: r.restore.began, ttfi: r.TTFI}
	program := r.image.process.Program
	early, err := r.costs() // the keeper leaves when all is there
	if err != nil {
		return l, err
	}
	if program.Step != nil {
		waiting, cancel := context.WithTimeout(ctx, stepPatience)
		ends, err := r.awaitSteps(waiting, 1)
		cancel()
		switch {
		case err == nil:
			l.step = ends[0].Sub(r.restore.began)
		case !program.InHere || waiting.Err() == nil || ctx.Err() != nil:
			return l, err
		}
	}
	resident, err := r.awaitResident(ctx, subject)
	if err != nil {
		return l, err
	}
	l.resident = resident
	if l.costs, err = r.costs(); err != nil {
		return l, err
	}
	l.costs = withThose(l.costs, early)
	if program.Step != nil && stepEndsIn(r.image.process.Fresh(), program.Step) != nil {
		seen := len(program.Step.FindAllString(r.image.process.Fresh(), -1))
		ends, err := r.awaitSteps(ctx, seen+paceSteps)
		if err != nil {
			return l, err
		}
		l.pace = paceOf(ends[seen:])
	}
	return l, nil
}

// awaitSteps waits for steps of the restored program, asking for them where it
// does one for each request, and gives when they ended.
func (r *Restored) awaitSteps(ctx context.Context, n int) ([]time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	program, tick := r.image.process.Program, time.NewTicker(500*time.Microsecond)
	defer tick.Stop()
	asked := -1
	for {
		fresh := r.image.process.Fresh()
		lines := program.Step.FindAllString(fresh, -1)
		if len(lines) >= n {
			if ends := stepEndsIn(fresh, program.Step); len(ends) >= n {
				return ends, nil
			}
			seen := make([]time.Time, len(lines))
			for i := range seen {
				seen[i] = time.Now()
			}
			return seen, nil
		}
		if program.OnRequest && asked < len(lines) {
			asked = len(lines)
			if err := r.Signal(syscall.SIGUSR1); err != nil {
				return nil, err
			}
		}
		select {
		case <-tick.C:
		case <-r.restore.ended:
			return nil, fmt.Errorf("%s: the program ended before a step: %w", r.restore.name,
				errors.Join(r.restore.err, errors.New(r.restore.said.String())))
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: wait for a step of the program: %w", r.restore.name, ctx.Err())
		}
	}
}

var endOfStep = regexp.MustCompile(`end_ns=([0-9]+)`)

// stepEndsIn is when the steps in an output ended, as they say themselves; nil
// where they do not.
func stepEndsIn(output string, step *regexp.Regexp) (ends []time.Time) {
	for _, line := range step.FindAllString(output, -1) {
		match := endOfStep.FindStringSubmatch(line)
		if match == nil {
			return nil
		}
		ns, err := strconv.ParseInt(match[1], 10, 64)
		if err != nil {
			return nil
		}
		ends = append(ends, time.Unix(0, ns))
	}
	return ends
}

// paceOf is the median of the times between steps; 0 of fewer than two.
func paceOf(ends []time.Time) time.Duration {
	var gaps []float64
	for i := 1; i < len(ends); i++ {
		gaps = append(gaps, float64(ends[i].Sub(ends[i-1])))
	}
	if len(gaps) == 0 {
		return 0
	}
	return time.Duration(median(gaps))
}

// paceBefore is the time of a step before the checkpoint, likewise.
func paceBefore(process *workload.Process) time.Duration {
	program := process.Program
	if program.Step == nil || program.OnRequest {
		return 0
	}
	ends := stepEndsIn(process.Output(), program.Step)
	return paceOf(ends[max(len(ends)-paceSteps-1, 0):])
}

// A filler is a subject that knows when all memory of what it restored is
// there; the others have it there from the first instruction on.
type filler interface {
	// resident waits for that and gives the moment.
	resident(ctx context.Context, r *Restored) (time.Time, error)
}

// awaitResident gives how long after the start of the command all was there.
func (r *Restored) awaitResident(ctx context.Context, subject Subject) (time.Duration, error) {
	f, lazy := subject.(filler)
	if !lazy {
		return r.TTFI, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	at, err := f.resident(ctx, r)
	if err != nil {
		return 0, err
	}
	return max(at.Sub(r.restore.began), r.TTFI), nil
}

// resident is when the statistics say so: they are written then.
func (o *ours) resident(ctx context.Context, r *Restored) (time.Time, error) {
	if o.eager || o.stats == "" {
		return r.First, nil
	}
	if err := r.awaitFile(ctx, o.stats); err != nil {
		return time.Time{}, err
	}
	info, err := os.Stat(o.stats)
	if err != nil {
		return time.Time{}, err
	}
	return info.ModTime(), nil
}

// resident is when the daemon ends: it has nothing left to send.
func (c *criu) resident(ctx context.Context, r *Restored) (time.Time, error) {
	if !c.lazy {
		return r.First, nil
	}
	if len(r.helpers) == 0 {
		return time.Time{}, errors.New("criu lazy-pages was not started")
	}
	daemon := r.helpers[0]
	if err := daemon.wait(ctx); err != nil {
		return time.Time{}, err
	}
	return daemon.over, nil
}
