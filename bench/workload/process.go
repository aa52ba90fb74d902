package workload

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// poll is how often a file that a program writes is looked at.
const poll = time.Millisecond

// A Process is a program that was started. It is the child of the caller until
// it ends; what restores it later is not its business, but its files are: they
// belong to the directory, and a restored process goes on writing them.
type Process struct {
	Program *Program
	// Dir is its directory, with stdout, stderr and what else it writes.
	Dir string
	Pid int
	// Started is the clock just before it was.
	Started time.Time

	ended chan struct{} // closed once it was waited for
	state *os.ProcessState
	sizes map[string]int64
}

// Start starts a program in dir, which is made. The process is the leader of a
// session of its own; whoever started it has to end it, with Kill if need be.
func (p *Program) Start(dir string) (*Process, error) {
	started := &Process{Program: p, Dir: dir, ended: make(chan struct{})}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	stdout, err := os.Create(filepath.Join(dir, "stdout"))
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	defer stdout.Close()
	stderr, err := os.Create(filepath.Join(dir, "stderr"))
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	defer stderr.Close()
	if err := handOnNothing(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	cmd := exec.Command(p.Args[0], p.Args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.Env = dir, stdout, stderr, environment(p.Env)
	if p.InHere {
		// The ring of clock readings is not for the caller's directory.
		cmd.Dir = ""
		cmd.Env = append(cmd.Env, stampVariable+filepath.Join(dir, stampFile))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	started.Started = time.Now()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	started.Pid = cmd.Process.Pid
	go func() {
		// The status is in state; it is no error here that it is not 0.
		_ = cmd.Wait()
		started.state = cmd.ProcessState
		close(started.ended)
	}()
	return started, nil
}

// handOnNothing keeps descriptors that this process was itself handed, by a
// shell or a CI runner, from programs: they would be state of a program that
// no restore can know. Go's own are closed at exec anyway.
func handOnNothing() error {
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close inherited descriptors at exec: %w", err)
	}
	return nil
}

// Ready waits until the output says that the program is in the middle of its
// work. A program that ends before that is an error.
func (p *Process) Ready(ctx context.Context) error {
	return p.await(ctx, "be ready", func() bool { return p.Program.Ready.MatchString(p.Output()) })
}

// await polls until done, or the program has ended, or ctx.
func (p *Process) await(ctx context.Context, what string, done func() bool) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		if done() {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.ended:
			if done() {
				return nil
			}
			return fmt.Errorf("wait for %s to %s: it ended (%s): %s", p.Program.Name, what, p.state, p.said())
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to %s: %w", p.Program.Name, what, ctx.Err())
		}
	}
}

// Ended is closed when the process that Start started has ended and was
// reaped.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// ExitCode is the status of the process that Start started, -1 after a signal
// or while it runs.
func (p *Process) ExitCode() int {
	select {
	case <-p.ended:
		return p.state.ExitCode()
	default:
		return -1
	}
}

// Kill ends the process that Start started, with what it has started itself, and reaps it.
// It is no error that it has ended already.
func (p *Process) Kill() {
	select {
	case <-p.ended:
		return
	default:
	}
	_ = syscall.Kill(-p.Pid, syscall.SIGKILL) // its group, as it leads a session
	<-p.ended
}

// Output is what the program has printed so far.
func (p *Process) Output() string {
	text, err := os.ReadFile(filepath.Join(p.Dir, "stdout"))
	if err != nil {
		return ""
	}
	return string(text)
}

// Result is the lines of the output that make up the result, or none while
// there are none.
func (p *Process) Result() []string {
	return p.Program.Result.FindAllString(p.Output(), -1)
}

// Fresh is what was printed since KeepFiles.
func (p *Process) Fresh() string {
	all := p.Output()
	return all[min(int(p.sizes[filepath.Join(p.Dir, "stdout")]), len(all)):]
}

// Stamps is the path of the program's ring of clock readings.
func (p *Process) Stamps() string { return filepath.Join(p.Dir, stampFile) }

// said is the end of what the program wrote to standard error.
func (p *Process) said() string {
	text, err := os.ReadFile(filepath.Join(p.Dir, "stderr"))
	if err != nil {
		return err.Error()
	}
	const tail = 500
	return strings.TrimSpace(string(text[max(len(text)-tail, 0):]))
}

// KeepFiles remembers the sizes of the program's files, as they were when it
// was checkpointed and ended, for Rewind.
func (p *Process) KeepFiles() error {
	sizes := map[string]int64{}
	err := filepath.WalkDir(p.Dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		sizes[path] = info.Size()
		return nil
	})
	if err != nil {
		return fmt.Errorf("sizes of the files of %s: %w", p.Program.Name, err)
	}
	p.sizes = sizes
	return nil
}

// Rewind gives the program's files the sizes back that KeepFiles saw, so that
// the same image can be restored once more: CRIU refuses a file whose size has
// changed. Only files that were appended to can be rewound.
func (p *Process) Rewind() error {
	var failed []error
	for path, size := range p.sizes {
		info, err := os.Stat(path)
		if err == nil && info.Size() > size {
			err = os.Truncate(path, size)
		}
		if err != nil {
			failed = append(failed, err)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("rewind the files of %s: %w", p.Program.Name, errors.Join(failed...))
	}
	return nil
}
