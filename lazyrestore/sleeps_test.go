package lazyrestore_test

import (
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

// Threads that sleep for a time sleep on for what was left of it, as if nothing
// had been: also those that a checkpoint has interrupted before, which sleep in
// restart_syscall.
func TestSleepersSleepOn(t *testing.T) {
	t.Parallel()
	const most = 4 * time.Second // of the six that they sleep for
	for _, first := range []string{"nanosleep", "poll", "futex", "clock_nanosleep"} {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			s := start(t, "timed-sleepers", first)
			begun := time.Now()
			for range 2 {
				s.checkpoint(lazyrestore.CheckpointOptions{LeaveRunning: true})
			}
			s.await("have slept for most of its time", func() bool { return time.Since(begun) > most })
			s.cycle(plainest, lazily)
			s.cycle(plainest, filling)
			s.well()
		})
	}
}
