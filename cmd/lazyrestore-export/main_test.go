package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/convert"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
)

// made makes a set, with the files of a dump that are not memory if it is whole, and an image of it.
func made(t *testing.T, whole bool) (set, img, digest string) {
	t.Helper()
	top := t.TempDir()
	set, img = filepath.Join(top, "set"), filepath.Join(top, "image")
	if err := os.Mkdir(set, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := imgfile.Open(set)
	if err != nil {
		t.Fatal(err)
	}
	w, err := d.CreateMemory(imgfile.OfTask(7), 1)
	if err != nil {
		t.Fatal(err)
	}
	for i, flags := range []imgfile.Flags{imgfile.Lazy, 0, imgfile.Lazy} {
		if err := w.WriteBytes(0x10000+page.Addr(i*40*page.Size), flags, bytes.Repeat([]byte("pages of it "), 40*page.Size/12)[:39*page.Size]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	staging, err := store.CreateDir(img)
	if err != nil {
		t.Fatal(err)
	}
	iw, err := image.NewWriter(staging, image.WriterOptions{Spec: chunk.DefaultSpec})
	if err != nil {
		t.Fatal(err)
	}
	m, err := convert.Import(context.Background(), d, iw)
	if err != nil {
		t.Fatal(err)
	}
	if whole {
		o, err := iw.Object("pstree.img")
		if err == nil {
			_, err = o.Write([]byte("the tree"))
		}
		if err == nil {
			err = errors.Join(o.Close(), os.WriteFile(d.File("pstree.img"), []byte("the tree"), 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	res, err := iw.Finish(context.Background(), m)
	if err != nil {
		t.Fatal(err)
	}
	if err := staging.Commit(); err != nil {
		t.Fatal(err)
	}
	return set, img, res.Digest
}

// run runs the verb.
func run(args ...string) (code int, out, errs string) {
	var stdout, stderr bytes.Buffer
	code = verb.External(exportVerb, args, &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func TestExport(t *testing.T) {
	set, img, digest := made(t, true)
	back := filepath.Join(t.TempDir(), "back")
	code, out, errs := run("--json", "--image-digest", digest, img, back)
	var said struct{ Set, Digest string }
	if err := json.Unmarshal([]byte(out), &said); code != verb.Done || err != nil || said.Digest != digest || said.Set != back {
		t.Fatalf("exit code %d, %v: %s%s", code, err, out, errs)
	}
	if errs != "" {
		t.Errorf("it says %s", errs)
	}
	for _, name := range []string{"pagemap-7.img", "pages-1.img", "pstree.img"} {
		want, err := os.ReadFile(filepath.Join(set, name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(back, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what it was: %v", name, err)
		}
	}
}

// An image that a page server made has the memory alone, whatever was copied beside it: that
// is said.
func TestExportOfMemoryAlone(t *testing.T) {
	_, img, _ := made(t, false)
	if err := os.WriteFile(filepath.Join(img, "pstree.img"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errs := run(img, filepath.Join(t.TempDir(), "back"))
	if code != verb.Done || !strings.Contains(errs, "without=pstree.img") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}

func TestExportFails(t *testing.T) {
	_, img, _ := made(t, false)
	_, damaged, _ := made(t, false)
	frames := filepath.Join(damaged, "pages.zst")
	b, err := os.ReadFile(frames)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/3] ^= 1
	if err := os.WriteFile(frames, b, 0o600); err != nil {
		t.Fatal(err)
	}
	top := t.TempDir()
	to := filepath.Join(top, "set")
	for name, c := range map[string]struct {
		args []string
		code int
	}{
		"damaged":      {[]string{damaged, to}, verb.Damaged},
		"other digest": {[]string{"--image-digest", "sha256:" + string(bytes.Repeat([]byte("0"), 64)), img, to}, verb.Damaged},
		"no image":     {[]string{top, to}, verb.Damaged},
		"taken":        {[]string{img, img}, verb.Failed},
		"one word":     {[]string{img}, verb.Usage},
	} {
		t.Run(name, func(t *testing.T) {
			if code, _, errs := run(c.args...); code != c.code || errs == "" {
				t.Errorf("exit code %d, not %d: %s", code, c.code, errs)
			}
			if left, err := fs.Glob(os.DirFS(top), "*"); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}
