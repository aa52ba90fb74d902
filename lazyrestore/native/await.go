package native

import (
	"cmp"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// errNotBuilt is why a userfaultfd is not served of a process that could not be built.
var errNotBuilt = errors.New("the process was not built")

// handOverBeside has the userfaultfd of a lazy process received and given to the one who
// serves it, from a goroutine of its own, while the process goes on building itself. It
// is called before there is one: the process may get the processor of the one who lets
// it begin, who would start nothing until it stops. Nothing is served before
// mayServe is called, or at all if that is with an error; further calls do nothing.
func (b *builder) handOverBeside(p *Process, pair int) (mayServe func(error)) {
	if !b.lazy() {
		return func(error) {}
	}
	p.handed = make(chan struct{})
	said := make(chan error, 1)
	go func() {
		defer close(p.handed)
		p.handErr = b.handOver(p, pair, said)
	}()
	var once sync.Once
	return func(err error) { once.Do(func() { said <- err }) }
}

func (b *builder) handOver(p *Process, pair int, mayServe <-chan error) (err error) {
	p.Mappings = b.st.mappings(b.re.files) // which takes its time if there are many
	if p.UFFD, _, err = uffd.ReceiveFD(pair, nil); err != nil || b.re.opts.Serve == nil {
		return err
	}
	if err := <-mayServe; err != nil {
		return err
	}
	p.abandon, err = b.re.opts.Serve(p)
	return err
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
	return b.awaitThreads(p.tracer)
}

// awaitThreads waits for the sleep of the threads other than the first, which has stopped.
func (b *builder) awaitThreads(tr *proc.Tracer) error {
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
			if _, err := tr.PollStop(b.pid); err != nil {
				return cmp.Or(b.failed(), err) // it was killed
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
	// What has been done by now is checked meanwhile: the results are in the cache of
	// another processor. One that is wrong is told of when it has stopped for that.
	_ = b.prog.check(b.main, b.prog.ran(b.main))
	for {
		if b.prog.told(builtOffset, toldPause) {
			return tr.StopSoon(b.pid)
		}
		if sig, err := tr.PollStop(b.pid); sig != 0 || err != nil {
			return sig, err
		}
	}
}
