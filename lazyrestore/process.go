package lazyrestore

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/native"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/pager"
)

// PID is the process's id: the one that it had, or, with
// RestoreOptions.PIDNamespace, the one that it has here.
func (p *Process) PID() int { return p.pid }

// Result is what was known when the process ran.
func (p *Process) Result() RestoreResult { return p.result }

// DeathSignal reports whether the process, or a thread of it, asks for a signal when its
// parent ends: that is this program.
func (p *Process) DeathSignal() bool { return p.deathSignal }

// onThreadThatStays calls f, which makes the process, on a thread that is there until the
// process has ended. The kernel sends parent-death signals when the thread ends that made
// the child, and Go may end any that is given back to it: with a goroutine that returns
// while it is locked to the thread, as background workers do.
//
// The thread polls a pidfd, which tells of the end only: a wait would also tell of each stop
// under a tracer, where that is a thread of this program, as in a checkpoint by it.
func (p *Process) onThreadThatStays(f func() error) error {
	// Close may close the process's own pidfd before the process ends. The number for a second
	// is had now, for there is no way back once the process runs.
	ended, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("get a descriptor to await the end of the process with: %w", err)
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer unix.Close(ended)
		err := f()
		if err == nil {
			err = unix.Dup3(p.pidfd, ended, unix.O_CLOEXEC) // that of two open descriptors does not fail
		}
		done <- err
		if err != nil {
			return
		}
		poll := []unix.PollFd{{Fd: int32(ended), Events: unix.POLLIN}}
		for {
			_, err := unix.Poll(poll, -1)
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	return <-done
}

// Signal sends a signal to the process. unix.ESRCH: it has ended. unix.EBADF:
// after Close.
func (p *Process) Signal(sig unix.Signal) error {
	return unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
}

// Wait waits for the end of the process, and of its own pid namespace if it has
// one, and gives the process's status. It may be called again, and from several
// goroutines: all get the same. The error is unix.ECHILD if something else in this
// program has waited for the process.
func (p *Process) Wait() (unix.WaitStatus, error) {
	p.waitOnce.Do(func() {
		for {
			_, err := unix.Wait4(p.pid, &p.status, 0, nil)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil { // say, a checkpoint in this process has waited for it
				p.waitErr = fmt.Errorf("wait for process %d: %w", p.pid, err)
				break
			}
			if p.status.Exited() || p.status.Signaled() {
				break
			}
		}
		if p.space != nil {
			p.waitErr = errors.Join(p.waitErr, p.space.Wait())
		}
	})
	return p.status, p.waitErr
}

// missing is what the pager still has to bring. Before it serves and while it
// leaves it names nothing, although the memory is registered with it: then its
// answer is waited for.
func (p *Process) missing() ([]page.Mapping, []pager.Part) {
	deadline := time.Now().Add(missingTime)
	for {
		if list, parts := p.pager.Remaining(), p.pager.Parted(); len(list)+len(parts) > 0 {
			return list, parts
		}
		select {
		case <-p.ended:
			return nil, nil
		case <-p.pager.Resident(): // it may stay, for a child
			return nil, nil
		case <-time.After(time.Millisecond):
		}
		if time.Now().After(deadline) {
			return nil, nil
		}
	}
}

// Resident is closed when all of the process's memory is there. It never is if
// the process ends, or its pages are lost, before: WaitPager returns then.
func (p *Process) Resident() <-chan struct{} { return p.resident }

// WaitPager waits until the pager has left: all memory is there, or nobody
// lives who needs it. The error says why pages could not be had.
func (p *Process) WaitPager() error {
	<-p.ended
	return p.pagerErr
}

// Close waits for the pager, as WaitPager does, and gives up what the restore holds;
// the process itself is left alone. With BackgroundNone that may last until the
// process has ended. It comes once, after all other calls but Result, PID, DeathSignal
// and Wait.
func (p *Process) Close() error {
	<-p.ended
	p.control.close()
	p.control = nil
	var err error
	if p.pager != nil {
		err = p.pager.Discard() // one that ended before its process
	}
	err = errors.Join(err, p.closeSource())
	if p.pidfd >= 0 {
		err = errors.Join(err, unix.Close(p.pidfd))
	}
	return err
}

// closeSource lets go of the image.
func (p *Process) closeSource() error {
	p.srcOnce.Do(func() { p.srcErr = p.src.Close() })
	return p.srcErr
}

// Stats are what the pager did so far; zero where nothing was lazy.
func (p *Process) Stats() Stats {
	if p.pager == nil {
		return Stats{}
	}
	s := p.pager.Stats()
	received, cached := traffic(p.src)
	return Stats{
		ReceivedBytes:  received,
		CachedBytes:    cached,
		Faults:         s.Faults,
		FaultP50Micros: micros(s.FaultP50),
		FaultP99Micros: micros(s.FaultP99),
		FaultMaxMicros: micros(s.FaultMax),
		FetchedBytes:   s.FetchedBytes,
		InstalledBytes: s.InstalledBytes,
		MissingBytes:   s.MissingBytes,
		ResidentMS:     milliseconds(s.Resident),
		OutageMS:       milliseconds(s.Outage),
		Stages:         stagesOf(s.Stages),
	}
}

func stagesOf(s *pager.Stages) *Stages {
	if s == nil {
		return nil
	}
	of := func(s pager.Stage) Stage { return Stage{micros(s.Mean), micros(s.P50), micros(s.P99)} }
	return &Stages{Queue: of(s.Queue), Fetch: of(s.Fetch), Decode: of(s.Decode), Copy: of(s.Copy)}
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func (o OnLost) pager() pager.OnLost {
	switch o {
	case OnLostKill:
		return pager.Kill
	case OnLostPoison:
		return pager.Poison
	case OnLostWait:
	}
	return pager.Wait
}

func (c ChangedFiles) native() native.ChangedFiles {
	if c == ChangedWarn {
		return native.ChangedWarn
	}
	return native.ChangedRefuse
}

func (s Stdio) native() native.Stdio {
	switch s {
	case StdioSaved:
		return native.StdioSaved
	case StdioInherit:
		return native.StdioInherit
	case StdioAuto:
	}
	return native.StdioAuto
}
