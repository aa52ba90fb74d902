package harness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/bench/workload"
)

// Options say what to measure with. The zero value measures with what is found
// in the usual places.
type Options struct {
	// Lazyrestore is the command under test; bin/lazyrestore when empty.
	Lazyrestore string
	// CRIU is a directory made by bench/criu/install.sh or an executable. When
	// empty: that script's own default, else criu on the PATH.
	CRIU string
	// Dir is where images and the programs' files are put, in a directory of
	// their own. When empty: /dev/shm, where the page cache is all there is.
	Dir string
	// Disk is where images are put that are read from a disk; /var/tmp when empty.
	Disk string
	// Codecs and Chunks are those that programs are checkpointed with, as
	// --codec and --chunk-size have them; lz4 and 64KiB when empty.
	Codecs, Chunks []string
	// Programs is where the programs are built and kept; when empty a directory
	// in the user's cache.
	Programs string
	// Cache is the state of the page cache before each restore.
	Cache CacheState
	// Runs is how often each subject is measured; 0 is each figure's own number.
	Runs int
	// MiB is the memory of the program where the figure leaves it open; 0 is
	// the figure's own.
	MiB int
	// ReadyTime is how long a program has until it is in the middle of its work;
	// five minutes when 0.
	ReadyTime time.Duration
	// Quick asks for few samples of small programs.
	Quick bool
	// Extra names subjects that are shown beside the figure's own.
	Extra []string
	// Log is told what happens; nil is nothing.
	Log io.Writer
}

// An Env is what figures are measured in. It holds a directory and processes:
// Close ends and removes them.
type Env struct {
	opts    Options
	builder *workload.Builder
	dir     string
	disk    string // a directory on a disk, once something was put there

	mu     sync.Mutex
	serial int                  // guarded by mu
	live   map[stopper]struct{} // guarded by mu
}

// stopper is anything that must not outlive the Env.
type stopper interface{ Stop() error }

// NewEnv makes the directory. The calling process becomes the one to which
// orphans of its children fall, so that none is lost.
func NewEnv(opts Options) (*Env, error) {
	if opts.Lazyrestore == "" {
		opts.Lazyrestore = filepath.Join("bin", "lazyrestore")
	}
	if opts.Programs == "" {
		opts.Programs = programsDefault()
	}
	if opts.Log == nil {
		opts.Log = io.Discard
	}
	if opts.Dir == "" {
		opts.Dir = "/dev/shm"
	}
	bin, err := filepath.Abs(opts.Lazyrestore)
	if err != nil {
		return nil, fmt.Errorf("path of lazyrestore: %w", err)
	}
	opts.Lazyrestore = bin
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become the reaper of orphans: %w", err)
	}
	dir, err := os.MkdirTemp(opts.Dir, "lazyrestore-bench-*")
	if err != nil {
		return nil, fmt.Errorf("directory for images: %w", err)
	}
	env := &Env{opts: opts, dir: dir, live: map[stopper]struct{}{}}
	env.builder = &workload.Builder{Dir: opts.Programs}
	if opts.Cache == CacheCold && env.onTmpfs() {
		return nil, errors.Join(errors.New("a cold page cache needs a directory on a disk: --dir"), env.Close())
	}
	return env, nil
}

// programsDefault is where built programs are kept.
func programsDefault() string {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	return filepath.Join(cache, "lazyrestore", "programs")
}

// Close ends every process that is left and removes the directory.
func (e *Env) Close() error {
	e.mu.Lock()
	left := slices.Collect(maps.Keys(e.live))
	clear(e.live)
	e.mu.Unlock()
	var failed []error
	for _, s := range left {
		failed = append(failed, s.Stop())
	}
	failed = append(failed, os.RemoveAll(e.dir))
	if e.disk != "" {
		failed = append(failed, os.RemoveAll(e.disk))
		e.disk = ""
	}
	return errors.Join(failed...)
}

// Clear does Close's work between two figures.
func (e *Env) Clear() error {
	if err := e.Close(); err != nil {
		return err
	}
	return os.Mkdir(e.dir, 0o700)
}

func (e *Env) keep(s stopper) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.live[s] = struct{}{}
}

func (e *Env) drop(s stopper) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.live, s)
}

// path is a new name in the directory.
func (e *Env) path(what string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.serial++
	return filepath.Join(e.dir, strconv.Itoa(e.serial)+"-"+what)
}

// diskPath is a new name on a disk.
func (e *Env) diskPath(what string) (string, error) {
	if e.disk == "" {
		parent := e.opts.Disk
		if parent == "" {
			parent = "/var/tmp"
		}
		var err error
		if e.disk, err = os.MkdirTemp(parent, "lazyrestore-bench-*"); err != nil {
			return "", fmt.Errorf("directory on a disk: %w", err)
		}
	}
	if onTmpfs(e.disk) {
		return "", fmt.Errorf("%s is no disk: --disk names a directory on one", filepath.Dir(e.disk))
	}
	return filepath.Join(e.disk, filepath.Base(e.path(what))), nil
}

func (e *Env) logf(format string, args ...any) {
	fmt.Fprintf(e.opts.Log, format+"\n", args...)
}

// runs is how often to measure: what the user says, else what the figure does.
func (e *Env) runs(own int) int {
	switch {
	case e.opts.Runs > 0:
		return e.opts.Runs
	case e.opts.Quick:
		return min(own, quickRuns)
	}
	return own
}

// mib is how much memory the program gets: what the user says, else what the
// figure does.
func (e *Env) mib(own int) int {
	switch {
	case e.opts.MiB > 0:
		return e.opts.MiB
	case e.opts.Quick:
		return min(own, quickMiB)
	}
	return own
}

const (
	quickRuns = 2
	quickMiB  = 64
)

// A turn is one subject's part in a round: it gives one sample.
type turn struct {
	series *Series
	sample func(ctx context.Context) (float64, error)
}

// turnOf is the turn of a subject with an image: what is to be measured of a
// restore is up to the figure. The checkpoint is taken here; if that fails the
// series says so and the turn is nil.
func (e *Env) turnOf(ctx context.Context, subject Subject, program *workload.Program, series *Series,
	sample func(ctx context.Context, img *image) (float64, error),
) *turn {
	img, err := e.hold(ctx, subject, program)
	if err != nil {
		series.Err = err
		return nil
	}
	return &turn{series: series, sample: func(ctx context.Context) (float64, error) { return sample(ctx, img) }}
}

// rounds takes a sample of each, n times, the order reversed every other time:
// what one leaves behind for the next (warm caches, freed memory) then falls on
// all. One that fails is left out from then on, and its series says why.
func (e *Env) rounds(ctx context.Context, n int, turns ...*turn) {
	for round := range n {
		for i := range turns {
			at := i
			if round%2 == 1 {
				at = len(turns) - 1 - i
			}
			t := turns[at]
			if t == nil || t.series.Err != nil {
				continue
			}
			value, err := e.sample(ctx, t)
			if err != nil {
				t.series.Err = fmt.Errorf("round %d of %d: %w", round+1, n, err)
				e.logf("%s: %v", t.series.Name, t.series.Err)
				continue
			}
			if !math.IsNaN(value) { // the sample was of other things alone
				t.series.add(value)
			}
		}
	}
}

// clockTries is how often in a row the clock may be set during a sample.
const clockTries = 3

// sample takes one, and another in its place if the clock was set meanwhile.
func (e *Env) sample(ctx context.Context, t *turn) (value float64, err error) {
	for range clockTries {
		if value, err = t.sample(ctx); !errors.Is(err, errClockSet) {
			break
		}
		e.logf("%s: a sample is taken again: %v", t.series.Name, err)
	}
	return value, err
}

// A running program of the benchmark's own start.
type runningProgram struct{ *workload.Process }

func (p runningProgram) Stop() error { p.Kill(); return nil }

// start starts a program and waits until it is in the middle of its work.
func (e *Env) start(ctx context.Context, program *workload.Program) (*workload.Process, error) {
	ctx, cancel := context.WithTimeout(ctx, e.readyTime())
	defer cancel()
	process, err := program.Start(e.path(program.Name))
	if err != nil {
		return nil, &programError{err}
	}
	e.keep(runningProgram{process})
	e.logf("%s runs as pid %d", program.Name, process.Pid)
	if err := process.Ready(ctx); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("%w: it has %v for that (--ready-timeout), and shows it by a line of its output (--ready)", err, e.readyTime())
		}
		return nil, &programError{errors.Join(err, e.stop(process))}
	}
	if program.InHere && !program.Unseen {
		program.Unseen = !readsClock(process)
	}
	return process, nil
}

// readsClock reports whether the thread that was loaded into a program of the
// user's runs there: a script may have replaced itself since.
func readsClock(process *workload.Process) bool {
	since := time.Now()
	for time.Since(since) < 500*time.Millisecond {
		if first, err := firstStamp(process.Stamps(), since); err == nil && !first.IsZero() {
			return true
		}
		time.Sleep(5 * time.Millisecond)
	}
	return false
}

func (e *Env) readyTime() time.Duration { return cmp.Or(e.opts.ReadyTime, 5*time.Minute) }

// programError is that of a program which does not get to the middle of its
// work, whoever would checkpoint it there.
type programError struct{ err error }

func (e *programError) Error() string { return e.err.Error() }
func (e *programError) Unwrap() error { return e.err }

// stop ends a program that start started and forgets it.
func (e *Env) stop(process *workload.Process) error {
	process.Kill()
	e.drop(runningProgram{process})
	return os.RemoveAll(process.Dir)
}

// An image is one checkpoint, with the process that it is of: dead by now, but
// its files and its number are needed for a restore.
type image struct {
	dir     string
	process *workload.Process
	taken   taken
	memory  uint64 // the resident set of the process before, in bytes
}

// hold starts a program, has the subject checkpoint it, and sees it end.
func (e *Env) hold(ctx context.Context, subject Subject, program *workload.Program) (*image, error) {
	process, err := e.start(ctx, program)
	if err != nil {
		return nil, err
	}
	img := &image{dir: e.path(subject.Name() + ".image"), process: process}
	if img.memory, err = e.room(process.Pid); err != nil {
		return nil, errors.Join(err, e.stop(process))
	}
	if wantsDisk(subject) {
		if img.dir, err = e.diskPath(subject.Name() + ".image"); err != nil {
			return nil, errors.Join(err, e.stop(process))
		}
	}
	img.taken, err = e.checkpoint(ctx, subject, process.Pid, img.dir, false)
	if err != nil {
		return nil, errors.Join(err, e.stop(process))
	}
	select {
	case <-process.Ended():
	case <-time.After(time.Minute):
		return nil, fmt.Errorf("%s: pid %d goes on a minute after its checkpoint", subject.Name(), process.Pid)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	e.drop(runningProgram{process})
	e.logf("%s: checkpoint of %s in %v", subject.Name(), program.Name, img.taken.wall.Round(time.Millisecond))
	return img, process.KeepFiles()
}
