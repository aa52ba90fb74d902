package lazyrestore_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

// holdings are what a process has of that which a restore might leave behind.
type holdings struct{ descriptors, mappings, threads int }

func holdingsOf(t testing.TB, pid int) holdings {
	t.Helper()
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	return holdings{
		descriptors: len(must(os.ReadDir(filepath.Join(dir, "fd")))(t)),
		mappings:    strings.Count(string(must(os.ReadFile(filepath.Join(dir, "maps")))(t)), "\n"),
		threads:     len(must(os.ReadDir(filepath.Join(dir, "task")))(t)),
	}
}

// A program that is saved and brought back two hundred times in the middle of
// its work, each time from the last, ends as it does without, and has grown by
// nothing. With the race detector it is fewer: what that sees, it sees in these.
func TestTwoHundredCycles(t *testing.T) {
	t.Parallel()
	cycles := 200
	if raceEnabled {
		cycles = 50
	}
	s := start(t, "at-work")
	var first holdings
	for n := 1; n <= cycles; n++ {
		how := lazyrestore.RestoreOptions{}
		if n%10 == 5 {
			how.Background = lazyrestore.BackgroundNone // the next one has to ask this one's pager
		}
		s.cycle(lazyrestore.CheckpointOptions{Codec: "lz4"}, how)
		switch n {
		case 1, cycles:
			if err := s.proc.WaitPager(); err != nil {
				t.Fatal(err)
			}
			// Until its exec, what another test forks has the userfaultfd open too, and
			// what is registered with it is in mappings of its own.
			s.await("be rid of the userfaultfd", func() bool {
				smaps := must(os.ReadFile(filepath.Join("/proc", strconv.Itoa(s.pid), "smaps")))(t)
				return !strings.Contains(string(smaps), " um ")
			})
			if n == 1 {
				first = holdingsOf(t, s.pid)
			}
		}
	}
	if last := holdingsOf(t, s.pid); last != first {
		t.Errorf("after %d cycles it has %+v, after one it had %+v", cycles, last, first)
	}
	s.release()
	s.well()
}
