package store

import (
	"errors"
	"io/fs"
	"math"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// An object is as large as a server says, and costs memory for what is fetched of it.
func TestCachedObjectOfAnySize(t *testing.T) {
	dir, err := unix.Open(t.TempDir(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dir)
	for _, size := range []int64{0, 1, 1 << 40, 1 << 50, math.MaxInt64} {
		o, err := openCached(dir, "object", size)
		if err != nil {
			continue // no file is that large here
		}
		if end := o.blockEnd((size - 1) / cacheBlock); size > 0 && end != size {
			t.Errorf("the last block of %d bytes ends at %d", size, end)
		}
		if err := o.close(); err != nil {
			t.Error(err)
		}
	}
}

// What is damaged in a cache whose disk has become read-only is not given again.
func TestDamageThatCannotBeNoted(t *testing.T) {
	dir, err := unix.Open(t.TempDir(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dir)
	o, err := openCached(dir, "object", 3*cacheBlock)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.write(make([]byte, o.size), 0); err != nil {
		t.Fatal(err)
	}
	if err := o.close(); err != nil {
		t.Fatal(err)
	}
	if o, err = openCached(dir, "object", 3*cacheBlock); err != nil {
		t.Fatal(err)
	}
	if p := make([]byte, cacheBlock); !o.within(p, 0) || !o.readNow(p, 0) {
		t.Fatal("what was kept is not here")
	}
	readOnly, err := unix.Openat(dir, "object"+mapSuffix, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(o.have); err != nil {
		t.Fatal(err)
	}
	o.have = readOnly
	if fetched := o.forget(0, 10); fetched {
		t.Error("it was fetched by another process")
	}
	if o.within(make([]byte, cacheBlock), 0) {
		t.Error("the damage would be given again")
	}
	if err := o.close(); err != nil {
		t.Error(err)
	}
}

// A disk that takes nothing is no reason to fail; a directory that is not for us is one.
func TestNoRoom(t *testing.T) {
	for err, want := range map[error]bool{unix.ENOSPC: true, unix.EDQUOT: true, unix.EROFS: true, unix.EIO: true, unix.EACCES: false} {
		got := noRoom(&fs.PathError{Op: "mkdir", Path: "cache", Err: err})
		if errors.Is(got, ErrNoRoom) != want || !errors.Is(got, err) {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// Of two who make room, one that has opened a directory which the other has removed leaves
// that alone which a restore has made in its place.
func TestRemadeCacheIsInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sha256-x")
	first, err := enterCached(path)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(first)
	opened, err := openat(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(opened)
	if removed, err := removeCached(path); removed || err != nil {
		t.Fatalf("a directory in use is removed: %v, %v", removed, err)
	}
	if err := flock(first, unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if removed, err := removeCached(path); !removed || err != nil {
		t.Fatalf("removed: %v, %v", removed, err)
	}
	again, err := enterCached(path)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(again)
	if removed, err := removeOpenedCached(path, opened); removed || err != nil || !hasName(again, unix.AT_FDCWD, path) {
		t.Errorf("a directory in use is removed: %v, %v", removed, err)
	}
}
