package lazyrestore_test

import (
	"regexp"
	"strconv"
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
			if said := s.output(); !contains(said, " slept for ") {
				t.Errorf("it does not say for how long it slept: %s", said)
			}
		})
	}
}

// sleptEnough sees in what the subject has said that no sleep was much longer than
// it had to be, while the process was there.
func (s *subject) sleptEnough(said string) {
	s.t.Helper()
	const late = 2500 // ms from the end of a sleep until the thread runs
	for _, m := range regexp.MustCompile(`(?m)^(\S+) slept for (\d+) of (\d+) ms$`).FindAllStringSubmatch(said, -1) {
		slept, want := must(strconv.ParseInt(m[2], 10, 64))(s.t), must(strconv.ParseInt(m[3], 10, 64))(s.t)
		if away := s.away.all.Milliseconds(); slept > want+away+late {
			s.t.Errorf("%s, and it was away for %d ms", m[0], away)
		}
	}
}
