package proc

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// Threads that do not stop are waited for once, however many they are, and the others run
// on at once.
func TestSeizeManyThatDoNotStop(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	// The target ends with the thread that starts it, which must not be the tracer's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p := startTarget(t, compile(t, "target.c"), "vfork", "vfork", "avx", "vfork", "vfork")
	wait := []int{1, 2, 4, 5}
	p.waitsIn(t, wait...)
	tr, err := NewTracer()
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	const short = 500 * time.Millisecond
	tr.Patience = short
	begin := time.Now()
	var stuck *StuckError
	if _, err := tr.SeizeAll(t.Context(), p.pid()); !errors.As(err, &stuck) {
		t.Fatalf("seize: %v, want that it does not stop", err)
	}
	p.waitProgress(wait...)
	if left := tr.Tasks(); len(left) != len(wait) {
		t.Errorf("%d are still traced: %v", len(left), left)
	}
	tr.Patience = 0
	if err := tr.Close(); !errors.As(err, &stuck) {
		t.Errorf("close: %v, want that it does not stop", err)
	}
	if took := time.Since(begin); took > patience {
		t.Errorf("it took %v", took)
	}
	p.waitProgress(wait...)
}

// waitsIn waits until these threads sleep where no signal reaches them; it gives
// the ids of all.
func (p *target) waitsIn(t *testing.T, threads ...int) []int {
	t.Helper()
	p.waitProgress(threads...)
	tids, err := ReadTasks(p.pid())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range threads {
		for deadline := time.Now().Add(20 * time.Second); ; runtime.Gosched() {
			if s, err := ReadStat(tids[i]); err == nil && s.State == 'D' {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("thread %d does not come to wait", i)
			}
		}
	}
	return tids
}

// Who has stopped goes on before it is waited for who does not stop.
func TestLetGoWaitsWithNobodyStopped(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p := startTarget(t, compile(t, "target.c"), "vfork", "avx")
	tids := p.waitsIn(t, 1)
	tr, err := NewTracer()
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	if err := tr.Hold(p.pid(), tids[1:3]); err != nil {
		t.Fatal(err)
	}
	if err := tr.HaltHeld(tids[2:3]); err != nil {
		t.Fatal(err)
	}
	let := make(chan error, 1)
	begin := time.Now()
	go func() {
		let <- tr.Do(func() error { return tr.letGo([]*task{tr.tasks[tids[1]], tr.tasks[tids[2]]}) })
	}()
	p.waitProgress(1)
	if took := time.Since(begin); took > patience/2 {
		t.Errorf("the thread that had stopped went on after %v", took)
	}
	_ = p.cmd.Process.Kill() // it is waited for at the test's end, when nobody traces it
	if err := <-let; err != nil {
		t.Error(err)
	}
}
