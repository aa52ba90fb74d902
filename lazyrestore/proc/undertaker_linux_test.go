package proc

import (
	"errors"
	"os/exec"
	"strconv"
	"testing"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// Whoever waits for the first thread of a process that is killed learns of that, though
// others of it are traced, which have to be buried before it.
func TestWaitForKilledLeader(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	for _, wait := range []func(tr *Tracer, pid int) error{
		func(tr *Tracer, pid int) error { _, err := tr.Wait(pid, 0); return err },
		func(tr *Tracer, pid int) error { _, err := tr.WaitStop(pid); return err },
		func(tr *Tracer, pid int) error { _, err := tr.StopSoon(pid); return err },
	} {
		p := startTarget(t, compile(t, "target.c"), "sleep", "futex", "pipe")
		tr := newTracer(t)
		if _, err := tr.SeizeAll(t.Context(), p.pid()); err != nil {
			t.Fatal(err)
		}
		if err := tr.Cont(p.pid(), 0); err != nil {
			t.Fatal(err)
		}
		// By another process: waits of which Go's scheduler knows nothing keep it from running anything.
		kill := exec.Command("sh", "-c", "sleep 0.02; kill -9 "+strconv.Itoa(p.pid()))
		if err := kill.Start(); err != nil {
			t.Fatal(err)
		}
		var exit *ExitError
		if err := wait(tr, p.pid()); !errors.As(err, &exit) {
			t.Errorf("%v, want an ExitError", err)
		}
		if err := kill.Wait(); err != nil {
			t.Error(err)
		}
	}
}
