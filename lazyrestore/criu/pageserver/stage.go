package pageserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
)

// stagePrefix begins the name of the directory in which a dump is kept until it
// is complete.
const stagePrefix = ".page-server.tmp-"

// oldPrefix begins there the names of pages files that the dump replaces: by its number alone one
// would be taken for a file of the dump, though another server may have that number by now.
const oldPrefix = "old-"

// makeStage makes the stage and locks it. Until it is locked, another server that starts takes it
// for what a killed one has left. Each does so once, before it makes its own: this comes to an end.
func (f *Files) makeStage() error {
	for {
		stage, err := os.MkdirTemp(f.dir.Path(), stagePrefix)
		if err != nil {
			return err
		}
		lock, err := lockDir(stage)
		if errors.Is(err, unix.EWOULDBLOCK) { // whoever has it removes it
			continue
		}
		if err == nil {
			err = stillAt(lock, stage)
		}
		if err == nil {
			f.stage, err = imgfile.Open(stage)
		}
		if err == nil {
			f.lock = lock
			return nil
		}
		if lock != nil {
			lock.Close()
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(err, os.RemoveAll(stage))
		}
	}
}

// stillAt says whether path still leads to the directory d; fs.ErrNotExist: it has been removed.
func stillAt(d *os.File, path string) error {
	here, err := d.Stat()
	if err != nil {
		return err
	}
	there, err := os.Lstat(path)
	if err == nil && !os.SameFile(here, there) {
		err = fs.ErrNotExist
	}
	return err
}

// lockDir marks a directory as in use.
func lockDir(path string) (*os.File, error) {
	d, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// stages lists those in a directory, of servers that run and of such as were killed.
func stages(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var paths []string
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), stagePrefix) {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths
}

// removeStages removes what killed servers have left.
func removeStages(dir string) {
	for _, path := range stages(dir) {
		if d, err := lockDir(path); err == nil {
			removeStage(dir, path)
			d.Close()
		}
	}
}

// removeStage removes the stage in dir of a server that was killed, and what it had reserved:
// of the pages files that are still in the stage, none has come to its place. Of the others, some may have
// without their pagemap; and pages of a dump that it replaces may not have gone yet, whose pagemap has.
// What cannot be removed, or told from those of others, does no harm, and stays with the stage.
func removeStage(dir, stage string) {
	entries, err := os.ReadDir(stage)
	if err != nil {
		return
	}
	there := map[string]bool{}
	for _, e := range entries {
		there[e.Name()] = true
	}
	var astray []string
	for name := range there {
		if _, ok := imgfile.ParseFile(strings.TrimPrefix(name, oldPrefix)); !ok {
			continue
		}
		pages, err := pagesOf(filepath.Join(stage, name))
		if err == nil && pages != "" && !there[pages] && !there[oldPrefix+pages] { // one that is not complete has its pages there
			astray = append(astray, pages)
		}
	}
	if len(astray) > 0 {
		needed, err := neededPages(dir, stage)
		if err != nil {
			return
		}
		for _, pages := range astray {
			path := filepath.Join(dir, pages)
			// An empty one another server may have reserved.
			if st, err := os.Lstat(path); err == nil && !needed[pages] && st.Mode().IsRegular() && st.Size() > 0 && os.Remove(path) != nil {
				return
			}
		}
	}
	if os.RemoveAll(stage) != nil {
		return
	}
	for name := range there {
		removeEmpty(filepath.Join(dir, name))
	}
}

// pagesOf is the pages file that a pagemap is about; "" for one that no page server makes.
func pagesOf(pagemap string) (string, error) {
	f, err := imgfile.OpenFile(pagemap)
	if err != nil {
		return "", err
	}
	defer f.Close()
	pm, err := imgfile.ReadPagemap(bufio.NewReader(f), pagemap)
	if err != nil || pm.PagesID < firstPagesID {
		return "", err
	}
	return imgfile.PagesName(pm.PagesID), nil
}

// neededPages are the pages files that pagemaps are about: those in dir, and in all stages there but one. Those in stages are
// looked at first, as they come from there.
func neededPages(dir, but string) (map[string]bool, error) {
	needed := map[string]bool{}
	for _, path := range append(stages(dir), dir) {
		if path == but {
			continue
		}
		entries, err := os.ReadDir(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if _, ok := imgfile.ParseFile(e.Name()); !ok {
				continue
			}
			pages, err := pagesOf(filepath.Join(path, e.Name()))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			needed[pages] = true
		}
	}
	return needed, nil
}

// errTwice is for two dumps of one memory at once: which of them the set has would be a matter of which ends later.
var errTwice = errors.New("another page server receives it into this directory")

// alonePatience is how long who else has a stage locked may be other than its own server: one that starts and removes what a
// killed one has left, of any size, or one that sees whether it is alone.
const alonePatience = 2 * time.Second

// alone gives an error if another server that runs receives the same memory into the directory. Of two that begin in one moment
// both may see that.
func (f *Files) alone(ctx context.Context, id imgfile.MemoryID) error {
	for _, stage := range stages(f.dir.Path()) {
		if filepath.Base(stage) == filepath.Base(f.stage.Path()) {
			continue
		}
		for end := time.Now().Add(alonePatience); isTaken(stage, id); {
			if !time.Now().Before(end) {
				return fmt.Errorf("%s: %w", id.File(), errTwice)
			}
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	return nil
}

// isTaken reports whether the memory is in a stage that somebody has locked.
func isTaken(stage string, id imgfile.MemoryID) bool {
	if _, err := os.Lstat(filepath.Join(stage, id.File())); err != nil {
		return false
	}
	d, err := lockDir(stage)
	if err == nil { // of one that was killed
		d.Close()
	}
	return errors.Is(err, unix.EWOULDBLOCK)
}
