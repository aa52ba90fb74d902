package lazyrestore_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
)

// A state that is longer than any is damage, and not read to its end: a file is terabytes
// long at no cost. The manifest, which has its true size, is read beside it.
func TestStateBeyondMeasure(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "img")
	staging := must(store.CreateDir(dir))(t)
	w := must(image.NewWriter(staging, image.WriterOptions{}))(t)
	o := must(w.Object(image.ProcessObject))(t)
	_, err := o.Write([]byte("LRPROC1\n"))
	if err = errors.Join(err, o.Close()); err != nil {
		t.Fatal(err)
	}
	must(w.Finish(t.Context(), image.Manifest{}))(t)
	if err := staging.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, image.ProcessObject), image.MaxProcess+1); err != nil {
		t.Fatal(err)
	}
	_, err = lazyrestore.Restore(t.Context(), dir, lazyrestore.RestoreOptions{DryRun: true})
	if !errors.Is(err, image.ErrDamaged) || !strings.Contains(err.Error(), "which is beyond") {
		t.Errorf("%v, want that it is too long", err)
	}
}
