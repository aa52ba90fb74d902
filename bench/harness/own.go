package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/bench/workload"
)

// Own is the figure of a program of the user's: every subject brings it back,
// beside a cold start.
func Own(opts workload.OwnOptions) *Figure {
	return &Figure{
		Name: "own", Title: opts.Args[0] + ": what each way to have it running costs", Limit: 30 * time.Minute,
		measure: func(ctx context.Context, e *Env) (*Result, error) {
			program, err := e.builder.Own(ctx, opts)
			switch {
			case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
				return nil, fmt.Errorf("the program is not there: %w", err)
			case err != nil:
				return nil, err
			}
			result, err := e.sideBySide(ctx, "own", program, e.runs(programRuns))
			if result != nil && program.Unseen {
				result.Notes = append(result.Notes, "no thread that reads the clock could be loaded into the program (it is linked statically, or was started by a script): its first instruction cannot be seen, its first line of output can")
			}
			return result, err
		},
	}
}

// OwnProcess is the figure of a process of the user's that runs already. It is
// checkpointed again and again and goes on. With copies it is restored too,
// beside itself: what a copy does before it is ended, it does to the same
// files, which is not for a benchmark to decide.
func OwnProcess(pid int, copies bool) *Figure {
	return &Figure{
		Name: "own", Title: fmt.Sprintf("process %d: what checkpoints of it cost, which leave it running", pid), Limit: 30 * time.Minute,
		measure: func(ctx context.Context, e *Env) (*Result, error) { return e.checkpoints(ctx, pid, copies) },
	}
}

// checkpoints has every subject with a format of its own write the process.
func (e *Env) checkpoints(ctx context.Context, pid int, copies bool) (*Result, error) {
	if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err != nil {
		return nil, fmt.Errorf("process %d: there is none", pid)
	}
	memory, err := e.room(pid)
	if err != nil {
		return nil, err
	}
	note := "restores are measured with --copies, or of programs that bench starts itself: lazyrestore bench -- PROGRAM"
	if copies {
		note = "copies run when their command says so; each is ended at once"
	}
	result := &Result{Notes: []string{fmt.Sprintf("%s of its memory was there; %s", show(float64(memory), "B"), note)}}
	seen := map[string]bool{}
	var turns []*turn
	for _, subject := range e.subjects() {
		if seen[subject.Format()] || wantsDisk(subject) {
			continue
		}
		seen[subject.Format()] = true
		took := result.measure(subject.Format(), measureCheckpoint, "ns/op")
		if missing, ok := subject.(*absent); ok {
			took.Err = missing.err
			continue
		}
		rate, size := result.measure(subject.Format(), measureWrite, "B/s"), result.measure(subject.Format(), measureImage, "B")
		var run *Series
		if _, ok := subject.(*ours); ok && copies {
			run = result.measure(subject.Format(), measureTTFI, "ns/op")
		}
		turns = append(turns, &turn{series: took, sample: func(ctx context.Context) (float64, error) {
			dir := e.path(subject.Format())
			taken, err := e.checkpoint(ctx, subject, pid, dir, true)
			if err != nil {
				return 0, errors.Join(err, os.RemoveAll(dir))
			}
			bytes, err := sizeOf(dir)
			size.add(float64(bytes))
			rate.add(float64(memory) / taken.wall.Seconds())
			if run != nil && err == nil {
				err = e.runCopy(ctx, dir, run)
			}
			return float64(taken.wall.Nanoseconds()), errors.Join(err, os.RemoveAll(dir))
		}})
	}
	e.rounds(ctx, e.runs(programRuns), turns...)
	return result, nil
}

// runCopy restores an image whose process runs beside it, and notes how long
// that took.
func (e *Env) runCopy(ctx context.Context, dir string, run *Series) error {
	c, err := e.copy(ctx, dir)
	if err != nil {
		run.Err = err
		return nil
	}
	run.add(float64(c.took.Nanoseconds()))
	return c.end()
}

// room is the resident set of a process, in bytes, and an error if an image of it
// would not fit where images are put, or, where that is in memory, beside it.
func (e *Env) room(pid int) (uint64, error) {
	need, err := residentOf(pid)
	if err != nil {
		return 0, err
	}
	var info unix.Statfs_t
	if err := unix.Statfs(e.dir, &info); err != nil {
		return 0, fmt.Errorf("room for images in %s: %w", e.dir, err)
	}
	free := info.Bavail * uint64(info.Bsize)
	if e.onTmpfs() {
		memory, err := availableMemory()
		if err != nil {
			return 0, err
		}
		free = min(free, memory)
	}
	return need, fits(need, free)
}

// fits is an error if an image of so much memory, at worst of its size, would be
// too much.
func fits(need, free uint64) error {
	if need+need/4 < free {
		return nil
	}
	return fmt.Errorf("the program has %s of memory, and an image of it would not fit into the %s that are free: --dir names another directory, or one on a disk",
		show(float64(need), "B"), show(float64(free), "B"))
}

// residentOf is the resident set of a process, in bytes.
func residentOf(pid int) (uint64, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0, fmt.Errorf("memory of pid %d: %w", pid, err)
	}
	var total, resident uint64
	if _, err := fmt.Fscan(bytes.NewReader(text), &total, &resident); err != nil {
		return 0, fmt.Errorf("memory of pid %d: %w", pid, err)
	}
	return resident * uint64(os.Getpagesize()), nil
}

// availableMemory is what could be had without swapping, in bytes.
func availableMemory() (uint64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	_, rest, found := bytes.Cut(text, []byte("MemAvailable:"))
	var kib uint64
	if _, err := fmt.Fscan(bytes.NewReader(rest), &kib); err != nil || !found {
		return 0, fmt.Errorf("/proc/meminfo says nothing of what is available: %w", err)
	}
	return kib << 10, nil
}
