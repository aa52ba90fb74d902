package lazyrestore_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

var (
	lazily   = lazyrestore.RestoreOptions{Background: lazyrestore.BackgroundNone}
	filling  = lazyrestore.RestoreOptions{}
	eagerly  = lazyrestore.RestoreOptions{Eager: true}
	allLazy  = []lazyrestore.RestoreOptions{lazily, filling}
	plainest = lazyrestore.CheckpointOptions{}
)

func backgroundName(r lazyrestore.RestoreOptions) string {
	switch {
	case r.Eager:
		return "eager"
	case r.Background == "":
		return "full"
	}
	return string(r.Background)
}

// lazyScenes play with their memory from the first instruction after a
// restore on: the file that they wait for is there before it.
func lazyScenes(t *testing.T, scene string, then func(t *testing.T, s *subject)) {
	t.Helper()
	for _, r := range allLazy {
		t.Run(scene+"/"+backgroundName(r), func(t *testing.T) {
			t.Parallel()
			s := start(t, scene)
			s.checkpoint(plainest)
			s.release()
			s.restore(r)
			then(t, s)
		})
	}
}

// Whatever a process does while its memory is missing, every byte is right.
func TestChangesWhileLazy(t *testing.T) {
	for _, scene := range []string{"look", "changes", "edges", "beyond", "forks", "many", "grows", "kernel-copies", "movers"} {
		lazyScenes(t, scene, func(_ *testing.T, s *subject) { s.well() })
	}
}

// With the background at work a guard that is installed while a page below it is being copied may be lost.
func TestGuardsOfRestored(t *testing.T) {
	t.Parallel()
	s := start(t, "guarded")
	s.checkpoint(plainest)
	s.release()
	s.restore(lazily)
	s.well()
}

func TestExecWhileLazy(t *testing.T) {
	lazyScenes(t, "execs", func(_ *testing.T, s *subject) {
		s.well()
		s.says(`(?m)^hello$`)
	})
}

// A program that an exec has begun is owed nothing of what its pager has not
// brought the one before, whether that knows of the exec or not.
func TestCheckpointAfterExecWhileLazy(t *testing.T) {
	t.Parallel()
	s := start(t, "execs-anew", "8")
	s.cycle(plainest, lazily)
	s.release()
	s.says(`(?m)^begun anew$`)
	s.cycle(plainest, lazily)
	s.touch("anew")
	s.well()
}

func TestExitWhileLazy(t *testing.T) {
	lazyScenes(t, "exits", func(t *testing.T, s *subject) {
		if status := s.status(); status.ExitStatus() != 42 {
			t.Errorf("exit status %d, want 42", status.ExitStatus())
		}
		s.close()
	})
}

// A killed process ends at once, whatever it waits for, and so does its pager.
func TestKillWhileLazy(t *testing.T) {
	t.Parallel()
	s := start(t, "look")
	s.cycle(plainest, lazily)
	if err := s.proc.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status := s.status(); status.Signal() != unix.SIGKILL {
		t.Errorf("ended with %v, want SIGKILL", status)
	}
	s.close()
}

// A child that outlives its parent still gets its memory.
func TestOrphanWhileLazy(t *testing.T) {
	lazyScenes(t, "orphan", func(t *testing.T, s *subject) {
		if status := s.status(); status.ExitStatus() != 0 {
			t.Fatalf("exit status %d; it said:\n%s", status.ExitStatus(), s.output())
		}
		s.touch("orphaned")
		s.close() // waits for the pager, which waits for the child
		s.says(`(?m)^orphan (well|lost)$`)
		if got := s.output(); !contains(got, "orphan well") {
			t.Error(got)
		}
	})
}

// All memory is there before the first instruction of an eager restore.
func TestEager(t *testing.T) {
	t.Parallel()
	s := start(t, "look")
	s.cycle(plainest, eagerly)
	select {
	case <-s.proc.Resident():
	default:
		t.Error("it runs, and not all memory is there")
	}
	if f := s.proc.Stats().Faults; f != 0 {
		t.Errorf("%d faults", f)
	}
	s.release()
	s.well()
}

// A restore with nothing in the background brings what is touched and little
// more; the rest of the image is not read.
func TestBackgroundNoneBringsWhatIsTouched(t *testing.T) {
	t.Parallel()
	s := start(t, "look", "64")
	s.cycle(plainest, lazily)
	s.ready(1)
	if got := s.proc.Stats().InstalledBytes; got > 8<<20 {
		t.Errorf("%d bytes were installed of a process that sleeps", got)
	}
	if r := s.proc.Result(); r.LazyBytes < 64<<20 || r.EagerBytes > 4<<20 {
		t.Errorf("%d bytes lazy, %d eager, want 64 MiB and next to none", r.LazyBytes, r.EagerBytes)
	}
	s.release()
	s.well()
}

// With the background all memory comes by itself, and the pager leaves.
func TestBackgroundFullBringsAll(t *testing.T) {
	// Not beside others: until its exec, what they fork has the userfaultfd open too.
	s := start(t, "look", "64")
	s.cycle(plainest, filling)
	if err := s.proc.WaitPager(); err != nil {
		t.Fatal(err)
	}
	smaps, err := os.ReadFile("/proc/" + strconv.Itoa(s.pid) + "/smaps")
	if err != nil || contains(string(smaps), " um ") {
		t.Error("memory is still registered with a userfaultfd", err)
	}
	s.release()
	s.well()
}

// The image is let go of when all memory is there, also where the process lives on and nobody calls Close.
func TestImageIsLetGoOf(t *testing.T) {
	t.Parallel()
	s := start(t, "look", "8")
	s.cycle(plainest, filling)
	if err := s.proc.WaitPager(); err != nil {
		t.Fatal(err)
	}
	open := func() (names []string) {
		links, err := filepath.Glob("/proc/self/fd/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			if name, err := os.Readlink(l); err == nil && strings.HasPrefix(name, s.image) {
				names = append(names, name)
			}
		}
		return names
	}
	for end := time.Now().Add(patience); len(open()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("open are %v", open())
		}
	}
	s.release()
	s.well()
}

// A checkpoint of a process that still misses memory takes what is missing
// from the image that it comes from.
func TestCheckpointWhileLazy(t *testing.T) {
	t.Parallel()
	const stops = 3
	s := start(t, "part-by-part", "32", strconv.Itoa(stops))
	for stop := 1; stop <= stops; stop++ {
		s.cycle(plainest, lazily)
		s.release()
		s.ready(stop + 1)
	}
	old := s.image
	s.checkpoint(plainest)
	// The image stands alone: those that it was made from may go.
	for n := 1; n < s.count; n++ {
		if err := os.RemoveAll(fmt.Sprintf("%s/image-%d", s.dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	if s.image == old {
		t.Fatal("no new image")
	}
	s.restore(lazily)
	s.release()
	s.well()
}

// What no mapping shows of missing shared memory is in the image, and what is to be there from the start.
func TestCheckpointOfPartedWhileLazy(t *testing.T) {
	t.Parallel()
	s := start(t, "parted")
	s.cycle(plainest, lazily)
	s.release()
	s.ready(2)
	s.cycle(plainest, lazily)
	s.release()
	s.well()
}

// A checkpoint with the background at work, which goes on after it.
func TestCheckpointWhileFilling(t *testing.T) {
	t.Parallel()
	s := start(t, "look", "64")
	s.cycle(plainest, filling)
	s.checkpoint(lazyrestore.CheckpointOptions{LeaveRunning: true})
	second := s.image
	s.checkpoint(plainest)
	s.image = second
	s.restore(filling)
	s.release()
	s.well()
}

// A lazy process that was checkpointed and left running still gets everything.
func TestLeaveRunningWhileLazy(t *testing.T) {
	t.Parallel()
	s := start(t, "part-by-part", "32", "2")
	s.cycle(plainest, lazily)
	for stop := 1; stop <= 2; stop++ {
		s.checkpoint(lazyrestore.CheckpointOptions{LeaveRunning: true})
		s.release()
		s.ready(stop + 1)
	}
	s.release()
	s.well()
}

// Ten checkpoints and restores in a row, each while lazy, in turn with every
// codec.
func TestTenCycles(t *testing.T) {
	t.Parallel()
	s := start(t, "part-by-part", "16", "10")
	codecs := []string{"lz4", "none", "s2", "zstd", "zstd:1"}
	for stop := 1; stop <= 10; stop++ {
		s.cycle(lazyrestore.CheckpointOptions{Codec: codecs[stop%len(codecs)], ChunkSize: 4096 << (stop % 8)}, allLazy[stop%2])
		s.release()
		s.ready(stop + 1)
	}
	s.release()
	s.well()
}

// Shared memory that is missing is not taken for holes.
func TestSharedMemoryThroughCycles(t *testing.T) {
	for _, scene := range []string{"shared-anonymous", "memory-file-mapped", "no-exec"} {
		t.Run(scene, func(t *testing.T) {
			t.Parallel()
			s := start(t, scene)
			for range 4 {
				s.cycle(plainest, lazily)
				if r := s.proc.Result(); r.LazyBytes < 256<<10 {
					t.Errorf("%d bytes lazy, %d eager, want the shared memory among the first", r.LazyBytes, r.EagerBytes)
				}
			}
			s.release()
			s.well()
		})
	}
}
