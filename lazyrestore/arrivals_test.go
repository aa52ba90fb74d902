package lazyrestore_test

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// checkpointWhile makes an image, calls during while it is written, and after when it is
// there and the process is still to be ended.
func (s *subject) checkpointWhile(during, after func()) {
	s.t.Helper()
	s.checkpoint(lazyrestore.CheckpointOptions{Progress: func(lazyrestore.Progress) {
		what := &during
		if _, err := os.Stat(s.image); !errors.Is(err, os.ErrNotExist) {
			what = &after
		}
		if *what != nil {
			(*what)()
		}
		*what = nil
	}})
	if during != nil || after != nil {
		s.t.Fatal("no progress was told of")
	}
}

func sent(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// A signal that comes while the image is written is part of it, one of a timer that is
// set again is not, and one that comes too late is told of.
func TestSignalsThatComeMeanwhile(t *testing.T) {
	t.Parallel()
	s := start(t, "arrivals")
	listener := must(strconv.Atoi(s.says(`listener (\d+)`)[1]))(t)
	s.checkpointWhile(func() {
		sent(t, unix.Kill(s.pid, unix.SIGUSR1))
		sent(t, unix.Tgkill(s.pid, listener, unix.SIGUSR2))
		const timers = 1<<(unix.SIGALRM-1) | 1<<(34-1) // SIGRTMIN of the C library
		for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			status, err := proc.ReadStatus(s.pid)
			if err != nil || time.Now().After(end) {
				t.Errorf("its timers do not run out: %v", err)
				return
			}
			if status.ShdPnd&timers == timers {
				return
			}
		}
	}, func() {
		sent(t, unix.Kill(s.pid, unix.SIGUSR1)) // once more, which is nothing new
		sent(t, unix.Kill(s.pid, unix.SIGHUP))
	})
	want := "signals that came when the image had been written, and that the restored process does not get: SIGHUP"
	if !slices.Equal(s.last.Warnings, []string{want}) {
		t.Errorf("warnings %q, want %q", s.last.Warnings, want)
	}
	s.restore(lazyrestore.RestoreOptions{})
	s.release()
	s.well()
}

// So it is with what stops the process, or has it go on.
func TestJobControlMeanwhile(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGCONT} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			t.Parallel()
			s := start(t, "counting")
			isStopped := func() bool { return statField(t, s.pid, 3) == "T" }
			if sig == unix.SIGCONT {
				sent(t, unix.Kill(s.pid, unix.SIGSTOP))
				s.await("stop", isStopped)
			}
			s.checkpointWhile(func() { sent(t, unix.Kill(s.pid, sig)) }, func() {})
			s.restore(lazyrestore.RestoreOptions{})
			if sig == unix.SIGSTOP {
				s.await("stop", isStopped)
				sent(t, unix.Kill(s.pid, unix.SIGCONT))
			}
			s.release()
			s.well()
		})
	}
}
