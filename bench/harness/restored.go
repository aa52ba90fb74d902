package harness

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/workload"
)

// A Subject checkpoints and restores.
type Subject interface {
	// Name is what the subject is called in tables and on the command line.
	Name() string
	// Format names what its images are, whatever way they are restored.
	Format() string
	// Checkpoint is the command that writes an image of pid into dir, which
	// exists and is empty. The process ends, or goes on if leave is set.
	Checkpoint(ctx context.Context, pid int, dir string, leave bool) *exec.Cmd
	// Prepare starts what has to run before a restore; it may be nothing.
	Prepare(ctx context.Context, dir string) ([]*command, error)
	// Restore is the command that restores the image in dir. It stays the
	// parent of the restored process for as long as that lives.
	Restore(ctx context.Context, dir string) *exec.Cmd
}

// taken is what a checkpoint took.
type taken struct {
	wall time.Duration
	// peak is the largest resident set of the command, in bytes; never less
	// than that of this process, which it was until it became the command.
	peak int64
}

func (e *Env) checkpoint(ctx context.Context, subject Subject, pid int, dir string, leave bool) (taken, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return taken{}, fmt.Errorf("%s: %w", subject.Name(), err)
	}
	cmd, err := launch(subject.Name()+": checkpoint", subject.Checkpoint(ctx, pid, dir, leave))
	if err != nil {
		return taken{}, err
	}
	err = cmd.wait(ctx)
	t := taken{wall: time.Since(cmd.began)}
	if err != nil {
		return t, fmt.Errorf("%w%s", err, logOf(dir))
	}
	if usage, ok := cmd.cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		t.peak = usage.Maxrss << 10
	}
	return t, nil
}

// logOf is the end of CRIU's own log, where there is one.
func logOf(dir string) string {
	var all strings.Builder
	for _, name := range []string{"dump.log", "restore.log", "lazy-pages.log"} {
		if text, err := os.ReadFile(dir + "/" + name); err == nil && len(text) > 0 {
			fmt.Fprintf(&all, "\n%s: %s", name, text[max(len(text)-1000, 0):])
		}
	}
	return all.String()
}

// A Restored is a program that a restore brought back, or is bringing back.
type Restored struct {
	env     *Env
	image   *image
	process *handle
	restore *command
	helpers []*command
	stopped bool
	// First is the program's own first clock reading, TTFI how long after the
	// start of the command that was.
	First time.Time
	TTFI  time.Duration
}

// restore restores an image and waits for the program's first instruction.
func (e *Env) restore(ctx context.Context, subject Subject, img *image) (*Restored, error) {
	if err := img.process.Rewind(); err != nil {
		return nil, err
	}
	cache := e.opts.Cache
	if wantsDisk(subject) {
		cache = CacheCold
	}
	if err := cache.apply(img.dir); err != nil {
		return nil, err
	}
	helpers, err := subject.Prepare(ctx, img.dir)
	r := &Restored{env: e, image: img, helpers: helpers}
	e.keep(r)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w%s", err, logOf(img.dir)), r.Stop())
	}
	before := clocks()
	r.restore, err = launch(subject.Name()+": restore", subject.Restore(ctx, img.dir))
	if err == nil {
		err = r.awaitProgram(ctx)
	}
	if err == nil {
		r.process, err = holdDescendant(img.process.Pid)
	}
	if err == nil {
		err = before.sameAs(clocks())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w%s", err, logOf(img.dir)), r.Stop())
	}
	if !r.First.IsZero() {
		r.TTFI = r.First.Sub(r.restore.began)
	}
	return r, nil
}

// awaitProgram waits for the program's first instruction; where that cannot be
// seen, for the process.
func (r *Restored) awaitProgram(ctx context.Context) error {
	if !r.image.process.Program.Unseen {
		return r.awaitFirst(ctx)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if syscall.Kill(r.image.process.Pid, 0) == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-r.restore.ended:
			return fmt.Errorf("%s: it ended before there was a process: %w", r.restore.name,
				errors.Join(r.restore.err, errors.New(r.restore.said.String())))
		case <-ctx.Done():
			return fmt.Errorf("%s: wait for the process: %w", r.restore.name, ctx.Err())
		}
	}
}

// awaitFirst looks for the first stamp after the start of the command.
func (r *Restored) awaitFirst(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	// Seldom: the program notes the time, and has better use for the processor.
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		first, err := firstStamp(r.image.process.Stamps(), r.restore.began)
		if err != nil {
			return err
		}
		if !first.IsZero() {
			r.First = first
			return nil
		}
		select {
		case <-tick.C:
		case <-r.restore.ended:
			return fmt.Errorf("%s: it ended before the program ran: %w", r.restore.name,
				errors.Join(r.restore.err, errors.New(r.restore.said.String())))
		case <-ctx.Done():
			return fmt.Errorf("%s: wait for the program's first clock reading: %w", r.restore.name, ctx.Err())
		}
	}
}

// Signal sends a signal to the restored program itself.
func (r *Restored) Signal(sig syscall.Signal) error { return r.process.signal(sig) }

// AwaitLine waits for a line of the program's output that begins with word and
// returns its numbers by name.
func (r *Restored) AwaitLine(ctx context.Context, word string) (map[string]int64, error) {
	watch, err := r.watch()
	if err != nil {
		return nil, err
	}
	defer watch.Close()
	return r.awaitLine(ctx, watch, word)
}

func (r *Restored) watch() (*workload.Watch, error) {
	watch, err := r.image.process.Watch()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.restore.name, err)
	}
	return watch, nil
}

func (r *Restored) awaitLine(ctx context.Context, watch *workload.Watch, word string) (map[string]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		if line, ok := lineOf(r.image.process.Output(), word); ok {
			return numbers(line), nil
		}
		select {
		case <-watch.Changed():
		case <-r.restore.ended:
			return nil, fmt.Errorf("%s: the program ended before it printed %q: %w", r.restore.name, word,
				errors.Join(r.restore.err, errors.New(r.restore.said.String())))
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: wait for %q: %w", r.restore.name, word, ctx.Err())
		}
	}
}

// Verify waits for the program's result and is an error if that is not "ok".
func (r *Restored) Verify(ctx context.Context) error {
	if _, err := r.AwaitLine(ctx, "result"); err != nil {
		return err
	}
	for _, line := range r.image.process.Result() {
		if line != "result ok" {
			return fmt.Errorf("%s: WRONG MEMORY: %s", r.restore.name, line)
		}
	}
	return nil
}

// Stop ends the program and all that restored it.
func (r *Restored) Stop() error {
	if r.stopped {
		return nil
	}
	r.stopped = true
	r.env.drop(r)
	var failed []error
	if r.process == nil && r.restore != nil {
		// Not held yet: it may be there all the same, half restored.
		r.process, _ = holdDescendant(r.image.process.Pid)
	}
	if r.process != nil {
		failed = append(failed, r.process.end())
	}
	if r.restore != nil {
		failed = append(failed, r.restore.settle())
	}
	for _, helper := range r.helpers {
		// A daemon that nobody has spoken to would wait for ever.
		failed = append(failed, helper.Stop())
	}
	return errors.Join(failed...)
}

// firstStamp is the earliest clock reading in a ring that is later than after,
// or zero.
func firstStamp(ring string, after time.Time) (time.Time, error) {
	text, err := os.ReadFile(ring)
	if err != nil {
		return time.Time{}, fmt.Errorf("read clock readings: %w", err)
	}
	var first int64
	for ; len(text) >= 8; text = text[8:] {
		at := int64(binary.LittleEndian.Uint64(text))
		if at > after.UnixNano() && (first == 0 || at < first) {
			first = at
		}
	}
	if first == 0 {
		return time.Time{}, nil
	}
	return time.Unix(0, first), nil
}

// cold measures a cold start: the whole program from its beginning until it is
// ready, as if there were no image. In nanoseconds.
func (e *Env) cold(ctx context.Context, program *workload.Program) (float64, error) {
	process, err := e.start(ctx, program)
	if err != nil {
		return 0, err
	}
	took := time.Since(process.Started)
	return float64(took.Nanoseconds()), e.stop(process)
}

// lineOf finds the line that begins with word.
func lineOf(text, word string) (string, bool) {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, word+" ") && strings.HasSuffix(line, "\n") {
			return line, true
		}
	}
	return "", false
}

// numbers reads the name=value pairs of a line.
func numbers(line string) map[string]int64 {
	values := map[string]int64{}
	for _, field := range strings.Fields(line) {
		name, value, _ := strings.Cut(field, "=")
		if v, err := strconv.ParseInt(value, 10, 64); err == nil {
			values[name] = v
		}
	}
	return values
}
