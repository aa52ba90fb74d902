package store_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store/storetest"
)

// write puts objects into place at path.
func write(t *testing.T, path string, objects storetest.Objects) {
	t.Helper()
	s, err := store.CreateDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Abort()
	for name, b := range objects {
		f, err := s.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Commit(); err != nil {
		t.Fatal(err)
	}
}

func TestDir(t *testing.T) {
	storetest.Run(t, func(t *testing.T, objects storetest.Objects) image.Source {
		path := filepath.Join(t.TempDir(), "image")
		write(t, path, objects)
		d, err := store.OpenDir(path)
		if err != nil {
			t.Fatal(err)
		}
		return d
	})
}

// On a file system in memory everything can be read now.
func TestDirInMemory(t *testing.T) {
	shm, err := os.MkdirTemp("/dev/shm", "store-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(shm) })
	path := filepath.Join(shm, "image")
	write(t, path, storetest.Objects{"pages.raw": bytes.Repeat([]byte("x"), 10_000)})
	d, err := store.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p := make([]byte, 100)
	if ok, err := d.ReadNow("pages.raw", p, 9900); !ok || err != nil || p[99] != 'x' {
		t.Errorf("ReadNow = %v, %v, %q", ok, err, p)
	}
}

// The source in memory that other tests use passes the suite too.
func TestMem(t *testing.T) {
	storetest.Run(t, func(_ *testing.T, objects storetest.Objects) image.Source {
		m := new(imagetest.Mem)
		for name, b := range objects {
			m.Set(name, b)
		}
		return m
	})
}
