package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A writer that commits while another looks for leftovers keeps its image: between the
// other's open of the directory and its lock lies the commit.
func TestCommittedIsNoLeftover(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "img")
	s, err := CreateDir(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.Create("pages.lz4")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	parent, parentErr := openat(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	opened, err := openat(parent, s.tmp, unix.O_RDONLY|unix.O_DIRECTORY)
	if err := errors.Join(parentErr, err); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(parent)
	defer unix.Close(opened)
	tmp := s.tmp
	if err := s.Commit(); err != nil {
		t.Fatal(err)
	}
	removeOpened(parent, tmp, opened)
	if _, err := os.Stat(filepath.Join(path, "pages.lz4")); err != nil {
		t.Errorf("a committed image has lost a file: %v", err)
	}
}

func TestIsTmp(t *testing.T) {
	for range 100 {
		if name := tmpName("a.b"); !isTmp(name, "a.b") || isTmp(name, "a") {
			t.Errorf("%s is that of a, not of a.b", name)
		}
	}
	for _, name := range []string{"", ".img.tmp-", ".img.tmp-notes", ".img.tmp-abcdefghijk", ".img.tmp-abcdefghi1", "img.tmp-abcdefghij"} {
		if isTmp(name, "img") {
			t.Errorf("%q is taken for a leftover", name)
		}
	}
}
