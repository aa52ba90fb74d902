package convert

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
)

// A hooked sink calls do when the first file of the set is made.
type hooked struct {
	imagetest.Mem
	do func()
}

func (h *hooked) Create(name string) (io.WriteCloser, error) {
	if h.do != nil && strings.HasSuffix(name, ".img") {
		h.do()
		h.do = nil
	}
	return h.Mem.Create(name)
}

// A set that is dumped into while it is imported makes no image.
func TestImportOfTwoTimes(t *testing.T) {
	for name, meanwhile := range map[string]func(dir string){
		"nothing":            func(string) {},
		"other registers":    func(dir string) { write(t, dir, "registers.img", "registerS") },
		"a file more":        func(dir string) { write(t, dir, "timens-0.img", "") },
		"a file less":        func(dir string) { os.Remove(filepath.Join(dir, "registers.img")) },
		"pages of one dump":  func(dir string) { rewrite(t, dir, "pages-1.img") },
		"a pagemap replaced": func(dir string) { rewrite(t, dir, "pagemap-8.img") },
	} {
		t.Run(name, func(t *testing.T) {
			dir := madeSet(t)
			if err := os.Chtimes(filepath.Join(dir, "registers.img"), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
			d, err := imgfile.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			w, err := image.NewWriter(&hooked{do: func() { meanwhile(dir) }}, image.WriterOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Abort()
			switch _, err := Import(t.Context(), d, w); {
			case name == "nothing" && err != nil:
				t.Error(err)
			case name != "nothing" && !errors.Is(err, imgfile.ErrDamaged):
				t.Errorf("Import: %v", err)
			}
		})
	}
}

// rewrite puts another file with the same bytes in the place of one.
func rewrite(t *testing.T, dir, name string) {
	t.Helper()
	path := filepath.Join(dir, name)
	b, err := os.ReadFile(path)
	if err == nil {
		err = errors.Join(os.WriteFile(path+".new", b, 0o600), os.Rename(path+".new", path))
	}
	if err != nil {
		t.Fatal(err)
	}
}
