package pageserver

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
)

// A server that is killed while it puts a dump into its place leaves pages whose pagemap is not there yet, or is not there any more.
// The next one removes them, and nobody else's.
func TestKilledBetweenPagesAndPagemap(t *testing.T) {
	for name, c := range map[string]struct {
		kill func(t *testing.T, f *Files) // up to there it comes
		want map[int]uint64
	}{
		"pages that it has put there": {func(t *testing.T, f *Files) {
			if err := errors.Join(f.clear(), os.Rename(f.stage.File(f.names[0]), f.dir.File(f.names[0]))); err != nil {
				t.Fatal(err)
			}
		}, map[int]uint64{2: 1, 9: 9}},
		"pages that are replaced": {func(t *testing.T, f *Files) {
			pages := f.stage.File(oldPrefix + imgfile.PagesName(firstPagesID))
			if err := errors.Join(f.clear(), os.Rename(pages, f.dir.File(imgfile.PagesName(firstPagesID)))); err != nil { // before they had gone
				t.Fatal(err)
			}
		}, map[int]uint64{2: 1, 9: 9}},
		"all is there": {func(t *testing.T, f *Files) {
			if err := f.place(); err != nil {
				t.Fatal(err)
			}
		}, map[int]uint64{1: 2, 2: 1, 9: 9}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			commit(t, take(t, dir, 1, 1, 2))
			killed, running := take(t, dir, 2, 1), take(t, dir, 9, 9)
			if err := errors.Join(killed.end(), running.end()); err != nil {
				t.Fatal(err)
			}
			c.kill(t, killed)
			// The other one is amid that too: its pages are there, and its pagemap is not yet.
			if err := os.Rename(running.stage.File(running.names[0]), running.dir.File(running.names[0])); err != nil {
				t.Fatal(err)
			}
			killed.lock.Close()
			next, err := NewFiles(dir, "")
			if err != nil {
				t.Fatal(err)
			}
			next.Abort()
			if err := os.Rename(running.stage.File(running.names[1]), running.dir.File(running.names[1])); err != nil {
				t.Fatal(err)
			}
			delete(running.reserved, running.names[0])
			running.Abort()
			expectDumps(t, dir, c.want)
		})
	}
}

// Two servers do not receive the same task at once into one directory; once the first has ended, or was killed, another one may.
func TestOneTaskAtOnce(t *testing.T) {
	dir := t.TempDir()
	first := take(t, dir, 1, 1)
	second, err := NewFiles(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) { // it waits for as long as the lock may be somebody else's
		if err := second.Begin(t.Context(), imgfile.OfTask(1)); !errors.Is(err, errTwice) {
			t.Errorf("Begin: %v, want that another receives it", err)
		}
	})
	second.Abort()
	commit(t, first)
	expectDumps(t, dir, map[int]uint64{1: 1})
	killed := take(t, dir, 2, 1)
	late, err := NewFiles(dir, "") // it has looked for what others have left
	if err != nil {
		t.Fatal(err)
	}
	killed.lock.Close()
	if err := late.Begin(t.Context(), imgfile.OfTask(1)); err != nil {
		t.Error(err)
	}
	late.Abort()
	commit(t, take(t, dir, 3, 1))
	expectDumps(t, dir, map[int]uint64{1: 3})
}

// The stage of a server that was killed is also locked by one that starts and removes it, or that sees whether it is alone: neither
// is in the way of a dump.
func TestLockedStageOfAKilledServer(t *testing.T) {
	for name, lets := range map[string]func(dir, stage string){
		"removed":   removeStage,
		"looked at": func(string, string) {},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			killed := take(t, dir, 1, 1)
			next, err := NewFiles(dir, "")
			if err != nil {
				t.Fatal(err)
			}
			defer next.Abort()
			stage := killed.stage.Path()
			if err := errors.Join(killed.end(), killed.lock.Close()); err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				lock, err := lockDir(stage)
				if err != nil {
					t.Fatal(err)
				}
				var other sync.WaitGroup
				defer other.Wait()
				other.Go(func() {
					time.Sleep(alonePatience / 2)
					lets(filepath.Dir(stage), stage)
					lock.Close()
				})
				if err := next.Begin(t.Context(), imgfile.OfTask(1)); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
