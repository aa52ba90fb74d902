package harness

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A CacheState is what the page cache holds of an image before a restore.
type CacheState string

const (
	CacheWarm CacheState = "warm" // all of it: the image was read just before
	CacheCold CacheState = "cold" // nothing: it was written back and dropped
)

// apply brings the files in dir into the state. On tmpfs they are always warm.
func (c CacheState) apply(dir string) error {
	each := warm
	if c == CacheCold {
		each = chill
	}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return each(f)
	})
	if err != nil {
		return fmt.Errorf("make the page cache %s: %w", c, err)
	}
	return nil
}

func warm(f *os.File) error {
	var fsInfo unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fsInfo); err == nil && fsInfo.Type == unix.TMPFS_MAGIC {
		return nil
	}
	if err := f.Sync(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, f)
	return err
}

func chill(f *os.File) error {
	if err := f.Sync(); err != nil {
		return err
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

func (e *Env) onTmpfs() bool { return onTmpfs(e.dir) }

func onTmpfs(dir string) bool {
	var info unix.Statfs_t
	return unix.Statfs(dir, &info) == nil && info.Type == unix.TMPFS_MAGIC
}

// clockPair is both clocks, read together.
type clockPair struct{ wall, steady time.Duration }

// clocks reads the clock that programs stamp with, which somebody may set, and
// the one that nobody can.
func clocks() clockPair {
	var wall, steady unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_REALTIME, &wall)
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &steady)
	return clockPair{time.Duration(wall.Nano()), time.Duration(steady.Nano())}
}

// errClockSet is wrapped by the error of a sample during which somebody set the clock that
// programs stamp with: it says nothing.
var errClockSet = errors.New("the clock was set during the measurement")

// sameAs is an error if the wall clock was set in between.
func (c clockPair) sameAs(later clockPair) error {
	off := (later.wall - c.wall) - (later.steady - c.steady)
	if off.Abs() > 500*time.Microsecond+(later.steady-c.steady)/1000 {
		return fmt.Errorf("%w, by %v", errClockSet, off)
	}
	return nil
}
