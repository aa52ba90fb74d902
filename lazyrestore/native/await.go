package native

import (
	"cmp"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// handOver receives the userfaultfd, and gives it to the one who serves it,
// while the process goes on. Where the process ends before it has sent it, the
// socket says so.
func (b *builder) handOver(p *Process, pair int) {
	defer close(p.handed)
	p.Mappings = b.st.mappings() // which takes its time if there are many
	if p.UFFD, _, p.handErr = uffd.ReceiveFD(pair, nil); p.handErr != nil || b.re.opts.Serve == nil {
		return
	}
	p.abandon, p.handErr = b.re.opts.Serve(p)
}

// wait waits until the userfaultfd has been handed over, and says why it has
// not.
func (p *Process) wait() error {
	if p.handed != nil {
		<-p.handed
	}
	return p.handErr
}

// built waits for the leader's stop at the end of its table, and for the
// other threads' sleep.
func (b *builder) built(p *Process) error {
	stop, err := b.awaitStop(p.tracer)
	if err != nil {
		return cmp.Or(b.failed(), err)
	}
	if err := b.prog.check(b.main, len(b.main.steps)-1); err != nil {
		return b.explain(err)
	}
	if stop != unix.SIGSTOP {
		return stoppedEarly(stop)
	}
	if err := b.untouched(); err != nil {
		return err
	}
	deadline := time.Now().Add(10 * time.Second)
	for i, t := range b.threadTables {
		last := len(t.steps) - 1
		if b.st.Threads[i+1].Sleep.Call != 0 {
			last-- // it is in its own sleep
		}
		for b.prog.ran(t) < last {
			if err := b.prog.check(t, b.prog.ran(t)); err != nil {
				return b.explain(fmt.Errorf("thread %d: %w", b.st.Threads[i+1].TID, err))
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("thread %d did not build itself in time", b.st.Threads[i+1].TID)
			}
			unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		}
		if err := b.prog.check(t, last); err != nil {
			return b.explain(fmt.Errorf("thread %d: %w", b.st.Threads[i+1].TID, err))
		}
	}
	return nil
}

// failed is the step, of whichever thread, that was not what it should be, where
// there is one.
func (b *builder) failed() error {
	if err := b.prog.check(b.main, b.prog.ran(b.main)); err != nil {
		return b.explain(err)
	}
	for i, t := range b.threadTables {
		if err := b.prog.check(t, b.prog.ran(t)); err != nil {
			return b.explain(fmt.Errorf("thread %d: %w", b.st.Threads[i+1].TID, err))
		}
	}
	return nil
}

func stoppedEarly(stop unix.Signal) error {
	return fmt.Errorf("the new process stopped with %v before it was built", stop)
}

// toldPause is how long awaitStop sleeps before it looks whether the process
// has stopped, or ended, in the midst.
const toldPause = 2 * time.Millisecond

// awaitStop waits for the leader's stop. Most of that time it sleeps until the
// process tells that it is about to stop: for so short a sleep Go need not give
// the right to run Go to another thread, from which it is had back too late.
func (b *builder) awaitStop(tr *proc.Tracer) (unix.Signal, error) {
	for {
		if b.prog.told(builtOffset, toldPause) {
			return tr.StopSoon(b.pid)
		}
		if sig, err := tr.PollStop(b.pid); sig != 0 || err != nil {
			return sig, err
		}
	}
}
