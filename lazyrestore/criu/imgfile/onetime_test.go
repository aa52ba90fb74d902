package imgfile_test

import (
	"errors"
	"os"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A pages file is not opened for a pagemap that another has taken the place of since it was
// read, or that is gone; nor is a memory of one time then.
func TestPagemapOfAnotherTime(t *testing.T) {
	for name, spoil := range map[string]func(d *imgfile.Dir, path string) error{
		"another": func(d *imgfile.Dir, path string) error {
			b, err := os.ReadFile(path)
			return errors.Join(err, os.WriteFile(path+".new", b, 0o600), os.Rename(path+".new", path))
		},
		"cut":  func(_ *imgfile.Dir, path string) error { return os.Truncate(path, 0) },
		"gone": func(_ *imgfile.Dir, path string) error { return os.Remove(path) },
	} {
		t.Run(name, func(t *testing.T) {
			d, err := imgfile.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			w, err := d.CreateMemory(imgfile.OfTask(7), 1)
			if err == nil {
				err = errors.Join(w.WriteBytes(0x10000, imgfile.Lazy, make([]byte, 3*page.Size)), w.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
			m, err := d.Memory(imgfile.OfTask(7))
			if err != nil {
				t.Fatal(err)
			}
			f, _, err := m.Files[0].Open()
			if err != nil || m.Pagemaps.Changed() != nil {
				t.Fatal(err, m.Pagemaps.Changed())
			}
			f.Close()
			if err := spoil(d, d.File(imgfile.OfTask(7).File())); err != nil {
				t.Fatal(err)
			}
			if _, _, err := m.Files[0].Open(); !errors.Is(err, imgfile.ErrDamaged) {
				t.Errorf("Open: %v", err)
			}
			if err := m.Pagemaps.Changed(); !errors.Is(err, imgfile.ErrDamaged) || errors.Is(err, os.ErrNotExist) {
				t.Errorf("Changed: %v", err)
			}
		})
	}
}
