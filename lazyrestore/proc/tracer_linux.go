package proc

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A Tracer traces tasks (threads), whether of one process or of several. The
// kernel ties them to the thread that began to trace them, so all that a
// Tracer does is done on one thread of its own, which lives from NewTracer to
// Close.
//
// A task that is traced is given by its id. Where a task is gone the error is
// ErrNoProcess or an *ExitError. Methods may be called from any goroutine, but
// by one at a time. Each goes to the tracer's thread and back; whoever calls
// many of them calls them in one Do.
//
// When our process dies, the kernel lets go of what was seized and goes on
// with it, and kills what was started.
type Tracer struct {
	work  chan func()
	quit  chan struct{} // closed by Close
	ended chan struct{} // closed by the thread
	tid   int           // of the tracer's thread

	tasks map[int]*task // by id; used on the tracer's thread only
	child int           // what Start made, until it is reaped; 0: nothing
	pidfd int           // of child
	arena *Arena        // that Start used, or nil

	// Patience is how long is waited for tasks to stop; 0 stands for ten seconds.
	Patience time.Duration

	timers *timerEvents // of the tracer's own thread, or nil; see listen
}

// task is what a tracer knows of a task that it traces.
type task struct {
	tid     int
	pid     int
	seized  bool // by PTRACE_SEIZE; else it asked to be traced
	stopped bool
	stuck   bool // it was told to stop, did not in time, and has not since
	stop    Stop // the last, where stopped
	ours    bool // stop is a signal that we made; the task must not get it
	halted  bool // it has stood in a stop of the whole process
}

// ErrWrongThread says that another goroutine than its own used a tracer that
// TracerHere has made, or that it was closed.
var ErrWrongThread = errors.New("the tracer belongs to another thread")

// ErrClosed says that a Tracer was used after Close.
var ErrClosed = errors.New("the tracer is closed")

// NewTracer starts a tracer's thread. Close ends it.
func NewTracer() (*Tracer, error) {
	t := &Tracer{work: make(chan func()), quit: make(chan struct{}), ended: make(chan struct{}), tasks: make(map[int]*task), pidfd: -1}
	ready := make(chan struct{})
	go t.lock(ready)
	<-ready
	return t, nil
}

// TracerHere is a tracer on the calling thread, to which it locks the calling
// goroutine until Close. No thread has to be made for it and none has to be
// woken for each of its calls, which shows where a process is waited for. Its
// methods must be called by that goroutine.
func TracerHere() *Tracer {
	runtime.LockOSThread()
	return &Tracer{tid: unix.Gettid(), tasks: make(map[int]*task), pidfd: -1}
}

// lock finds the tracer a thread. The process's first thread will not do: Go
// never ends it, and tasks that it traces would stay so.
func (t *Tracer) lock(ready chan struct{}) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		t.run(ready)
		return // still locked: the thread ends with the goroutine
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.lock(ready)
	}()
	<-done
	runtime.UnlockOSThread()
}

func (t *Tracer) run(ready chan struct{}) {
	defer close(t.ended)
	t.tid = unix.Gettid()
	close(ready)
	for {
		select {
		case f := <-t.work:
			f()
		case <-t.quit:
			return
		}
	}
}

// Do calls f on the tracer's thread and returns its error. Within f, methods of
// the tracer may be called; they do not go anywhere then.
func (t *Tracer) Do(f func() error) error {
	if unix.Gettid() == t.tid {
		return f()
	}
	if t.work == nil {
		return ErrWrongThread
	}
	var err error
	done := make(chan struct{})
	job := func() {
		defer close(done)
		err = f()
	}
	select {
	case t.work <- job:
		<-done
		return err
	case <-t.ended:
		return ErrClosed
	}
}

// Close lets go of all tasks, as DetachAll does, and ends the tracer's thread.
// It must not be called in Do, and by one goroutine only; a second call does
// nothing.
func (t *Tracer) Close() error {
	err := t.DetachAll()
	if t.timers != nil {
		t.timers.close()
		t.timers = nil
	}
	if t.arena != nil {
		t.arena.Close()
		t.arena = nil
	}
	if t.work == nil {
		if t.tid == unix.Gettid() {
			t.tid = 0
			runtime.UnlockOSThread()
		}
		return err
	}
	if errors.Is(err, ErrClosed) {
		return nil
	}
	close(t.quit)
	<-t.ended
	return err
}

// Tasks lists the tasks that are traced, in no order.
func (t *Tracer) Tasks() []int {
	var tids []int
	_ = t.Do(func() error {
		for tid := range t.tasks {
			tids = append(tids, tid)
		}
		return nil
	})
	return tids
}

// Cont lets a task that is stopped go on. sig is the signal that it gets, in a
// StopSignal; 0 for none.
func (t *Tracer) Cont(tid int, sig unix.Signal) error { return t.resume(unix.PTRACE_CONT, tid, sig) }

// resume lets a stopped task go on until what the request says.
func (t *Tracer) resume(request, tid int, sig unix.Signal) error {
	return t.Do(func() error {
		if err := ptrace(request, tid, 0, uintptr(sig)); err != nil {
			return taskError("continue", tid, err)
		}
		if k := t.tasks[tid]; k != nil {
			k.stopped, k.ours = false, false
		}
		return nil
	})
}

// Wait waits for a task's next stop. It waits as long as it takes, or until
// patience has passed, if that is not 0. Errors: *ExitError, *StuckError.
func (t *Tracer) Wait(tid int, patience time.Duration) (stop Stop, err error) {
	err = t.Do(func() error {
		if patience != 0 {
			stop, err = t.wait(tid, time.Now().Add(patience))
			return err
		}
		stop, _, err = t.wait4(tid)
		return err
	})
	return stop, err
}

// WaitStop waits for a task's next stop by a signal and gives that signal; the
// task has not got it, and does not unless Cont says so. Other stops are
// passed over.
func (t *Tracer) WaitStop(tid int) (sig unix.Signal, err error) {
	return t.signalStop(tid, func() (Stop, bool, error) { return t.wait4(tid) })
}

// StopSoon is WaitStop for a task that is about to stop, whatever happens.
func (t *Tracer) StopSoon(tid int) (sig unix.Signal, err error) {
	return t.signalStop(tid, func() (Stop, bool, error) { return t.waitSoon(tid) })
}

// Withhold keeps from a task for good the signal for which it has stopped.
func (t *Tracer) Withhold(tid int) error {
	return t.Do(func() error {
		k := t.tasks[tid]
		if k == nil {
			return ErrNoProcess
		}
		k.ours = true
		return nil
	})
}

// PollStop is WaitStop that does not wait; sig is 0 where the task has not
// stopped.
func (t *Tracer) PollStop(tid int) (sig unix.Signal, err error) {
	return t.signalStop(tid, func() (Stop, bool, error) { return t.poll(tid) })
}

func (t *Tracer) signalStop(tid int, wait func() (Stop, bool, error)) (sig unix.Signal, err error) {
	err = t.Do(func() error {
		for {
			stop, ok, err := wait()
			if err != nil || !ok {
				return err
			}
			if stop.Kind == StopSignal {
				sig = stop.Signal
				return nil
			}
			if err := t.Cont(tid, 0); err != nil {
				return err
			}
		}
	})
	return sig, err
}

// Interrupt stops a task that was seized and runs; Wait tells when it has.
func (t *Tracer) Interrupt(tid int) error {
	return t.Do(func() error {
		return taskError("interrupt", tid, ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0))
	})
}

// DetachAll stops to trace all tasks, which go on where their registers say. A
// process that was stopped by a signal stays stopped, and a seized task that is
// about to get a signal gets it; one that was started does not.
func (t *Tracer) DetachAll() error {
	return t.Do(func() error {
		return t.letGo(slices.Collect(maps.Values(t.tasks)))
	})
}

// DetachStopped is DetachAll for those that stand still.
func (t *Tracer) DetachStopped() error {
	return t.Do(func() error {
		var tasks []*task
		for _, k := range t.tasks {
			if k.stopped {
				tasks = append(tasks, k)
			}
		}
		return t.letGo(tasks)
	})
}

// Detach stops to trace one task.
func (t *Tracer) Detach(tid int) error {
	return t.Do(func() error {
		if k := t.tasks[tid]; k != nil {
			return t.letGo([]*task{k})
		}
		return nil
	})
}

// letGo stops to trace tasks. Those that run have to be stopped for that: all are
// told before the first is waited for, and those that have stopped go on by then.
func (t *Tracer) letGo(tasks []*task) error {
	var errs []error
	var still, told []*task
	for _, k := range tasks {
		if k.stopped {
			still = append(still, k)
		} else if err := t.poke(k); err != nil {
			errs = append(errs, gone(err))
		} else {
			told = append(told, k)
		}
	}
	deadline := t.deadline()
	for _, k := range still { // who has stopped does not stand still for the others
		errs = append(errs, gone(t.detach(k)))
	}
	for _, k := range told {
		err := t.stopped(k, deadline)
		if err == nil {
			err = t.detach(k)
		}
		errs = append(errs, gone(err))
	}
	return errors.Join(errs...)
}

// detach stops to trace a task that stands still.
func (t *Tracer) detach(k *task) error {
	tid, sig := k.tid, unix.Signal(0)
	if k.seized && k.stop.Kind == StopSignal && !k.ours {
		sig = k.stop.Signal
	}
	err := ptrace(unix.PTRACE_DETACH, tid, 0, uintptr(sig))
	if errors.Is(err, unix.ESRCH) && tid != k.pid {
		// It was killed. As long as nobody waits for it, its process does not end;
		// the first thread's end is for the parent to see.
		t.bury(tid)
		return nil
	}
	delete(t.tasks, tid)
	return taskError("detach", tid, err)
}

// halt stops a task that runs.
func (t *Tracer) halt(k *task) error {
	if err := t.poke(k); err != nil {
		return err
	}
	return t.stopped(k, t.deadline())
}

// stopped waits until a task stands still that was told to. One that was waited for in
// vain is not again: the kernel lets it go when the tracer's thread ends.
func (t *Tracer) stopped(k *task, deadline time.Time) error {
	if k.stopped {
		return nil
	}
	if k.stuck {
		deadline = time.Now()
	}
	_, err := t.waitTold(k, deadline)
	return markStuck(err, []*task{k})
}

// deadline is until when tasks have time to stop that are told so now.
func (t *Tracer) deadline() time.Time { return time.Now().Add(cmp.Or(t.Patience, patience)) }

// markStuck notes of tasks that were told to stop that they have not, where err is a
// *StuckError; it is err.
func markStuck(err error, tasks []*task) error {
	var stuck *StuckError
	if errors.As(err, &stuck) {
		for _, k := range tasks {
			k.stuck = !k.stopped
		}
	}
	return err
}

// poke makes a task stop, now or when it goes on. A task that was not seized
// can only be stopped by a signal, which it never gets.
func (t *Tracer) poke(k *task) error {
	if k.seized {
		return taskError("interrupt", k.tid, ptrace(unix.PTRACE_INTERRUPT, k.tid, 0, 0))
	}
	return taskError("stop", k.tid, unix.Tgkill(k.pid, k.tid, unix.SIGSTOP))
}

// gone turns the errors that say that a task is no more into none.
func gone(err error) error {
	var exit *ExitError
	if errors.Is(err, ErrNoProcess) || errors.As(err, &exit) {
		return nil
	}
	return err
}

// taskError wraps the error of a request; nil stays nil. ESRCH is
// ErrNoProcess.
func taskError(what string, tid int, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.ESRCH) {
		err = ErrNoProcess
	}
	return fmt.Errorf("%s task %d: %w", what, tid, err)
}
