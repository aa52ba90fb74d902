package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

// forwarded are the signals that a process is sent through its parent.
func forwarded() []os.Signal {
	return []os.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGTERM,
		unix.SIGCONT, unix.SIGTSTP, unix.SIGWINCH, unix.SIGXCPU,
	}
}

// foreground restores the process and is its parent until it ends.
func (v *restoreVerb) foreground() error {
	v.opts.Logger = v.Logger(v.Stderr)
	jsonFile, err := v.jsonFile()
	if err != nil {
		return err
	}
	v.opts.Terminal = ownTerminal() // behind that: it may get a number that the user has named
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	started, ended := make(chan *supervised, 1), make(chan struct{})
	defer close(ended)
	signals := make(chan os.Signal, 64)
	stop, err := listen(signals, forwarded())
	if err != nil {
		return err
	}
	defer stop()
	go pass(signals, started, ended, cancel)

	verb.OutliveReaders() // before the process runs, which may be before start says so
	meter := newMeter(v.Stderr, v.foregroundProgress())
	s, err := v.start(ctx, meter.report())
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w (%w)", err, cause)
		}
		if jsonFile != nil {
			v.noteError(verb.WriteJSON(jsonFile, verb.DescribeFailure(err)))
		}
		return err
	}
	if v.opts.Terminal.Group() != 0 {
		signal.Ignore(unix.SIGTTOU) // or what we write would stop us, if the process has it so (stty tostop)
		_ = s.Signal(unix.SIGWINCH) // it shows nothing yet, and has a size of its own
	}
	started <- s
	v.warn(s.Result())
	if jsonFile != nil {
		v.noteError(verb.WriteJSON(jsonFile, s.Result()))
		if v.jsonFD > 2 { // a standard one is the command's, and its number nothing else's
			jsonFile.Close()
		}
	}
	return s.supervise()
}

// ownTerminal is the one that a process is given which had one, or nil. Who reads what that
// writes, or writes what it reads, is of our job as well, and may want the keys, as a pager does.
func ownTerminal() *lazyrestore.Terminal {
	if !term.IsTerminal(0) || !term.IsTerminal(1) {
		return nil
	}
	return lazyrestore.OpenTerminal()
}

// foregroundProgress is quiet unless asked: standard error is the process's too.
func (v *restoreVerb) foregroundProgress() progressStyle {
	if v.progress == progressAuto && !v.opts.Eager {
		return progressNone
	}
	return v.settle()
}

// supervise waits for the end of the process and gives its exit status.
func (s *supervised) supervise() error {
	type end struct {
		status unix.WaitStatus
		err    error
	}
	ended := make(chan end, 1)
	go func() {
		status, err := s.Wait()
		ended <- end{status, err}
	}()
	if s.verb.opts.Terminal.Group() != 0 {
		go s.followStops()
	}
	resident := s.Resident()
	for {
		select {
		case <-resident:
			resident = nil
			s.writeStats()
		case e := <-ended:
			s.verb.opts.Terminal.TakeBack(e.status.Signaled())
			s.writeStats()
			if e.err != nil {
				return fmt.Errorf("wait for process %d: %w", s.PID(), e.err)
			}
			if err := errors.Join(s.WaitPager(), s.Close()); err != nil {
				verb.Tell(s.verb.Stderr, "restore", err)
			}
			return verb.Status(exitOf(e.status))
		}
	}
}

// exitOf is the exit code that stands for the end of a process, as shells have it.
func exitOf(status unix.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// pass gives signals to the process. Before it runs, those that end a command
// end the restore; where they come too late for that, it gets them too.
func pass(signals <-chan os.Signal, started <-chan *supervised, ended <-chan struct{}, cancel context.CancelCauseFunc) {
	var s *supervised
	var early []unix.Signal
	for {
		select {
		case <-ended:
			return
		case s = <-started:
			for _, sig := range early {
				s.pass(sig)
			}
		case got := <-signals:
			sig, ok := got.(unix.Signal)
			switch {
			case !ok:
			case s != nil:
				s.pass(sig)
			case sig == unix.SIGHUP, sig == unix.SIGINT, sig == unix.SIGQUIT, sig == unix.SIGTERM:
				cancel(fmt.Errorf("interrupted by %s", unix.SignalName(sig)))
				early = append(early, sig)
			case sig == unix.SIGTSTP:
				unix.Kill(unix.Getpid(), unix.SIGSTOP)
			case len(early) < cap(signals):
				early = append(early, sig)
			}
		}
	}
}

// pass gives one signal to the process. What a terminal sends goes to all of
// its foreground group: where the process belongs to it, it has the signal
// already.
func (s *supervised) pass(sig unix.Signal) {
	if sig == unix.SIGCONT && s.verb.opts.Terminal.Group() != 0 {
		s.resume()
		return
	}
	terminal := sig == unix.SIGINT || sig == unix.SIGQUIT || sig == unix.SIGTSTP || sig == unix.SIGWINCH || sig == unix.SIGHUP
	if terminal && s.sharesTerminal() {
		if sig == unix.SIGTSTP {
			unix.Kill(unix.Getpid(), unix.SIGSTOP) // so that the shell sees the job stopped
		}
		return
	}
	if err := s.Signal(sig); err != nil {
		s.verb.Note("warning: pass on " + unix.SignalName(sig) + ": " + err.Error())
	}
}

// sharesTerminal reports whether the process and this command are both in the
// foreground group of one terminal.
func (s *supervised) sharesTerminal() bool {
	tty, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer unix.Close(tty)
	foreground, err := unix.IoctlGetInt(tty, unix.TIOCGPGRP)
	if err != nil || foreground != unix.Getpgrp() {
		return false
	}
	group, err := unix.Getpgid(s.PID())
	return err == nil && group == foreground
}
