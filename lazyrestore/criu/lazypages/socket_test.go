package lazypages

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Signals, which Go sends itself too, do not end a sleep before its time; the end of
// the context does.
func TestSleepLastsDespiteSignals(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w, err := newWaker(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	tid, stop := unix.Gettid(), make(chan struct{})
	var signals sync.WaitGroup
	signals.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_ = unix.Tgkill(unix.Getpid(), tid, unix.SIGURG)
			case <-stop:
				return
			}
		}
	})
	began := time.Now()
	if err := w.sleep(grace); err != nil || time.Since(began) < grace {
		t.Errorf("slept for %v of %v: %v", time.Since(began), grace, err)
	}
	close(stop)
	signals.Wait()
	cancel()
	if err := w.sleep(time.Hour); err == nil {
		t.Error("slept beyond the end of the context")
	}
}
