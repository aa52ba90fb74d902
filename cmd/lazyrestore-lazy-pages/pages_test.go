package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/cmd/internal/criucli"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/lazypages"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
)

// writeImage makes an image with some empty objects, and gives its digest.
func writeImage(t *testing.T, dir string, objects ...string) (digest string) {
	t.Helper()
	staging, err := store.CreateDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	w, err := image.NewWriter(staging, image.WriterOptions{Workers: 1})
	for _, name := range objects {
		if err == nil {
			_, err = w.Object(name)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	res, err := w.Finish(t.Context(), image.Manifest{})
	if err == nil {
		err = staging.Commit()
	}
	if err != nil {
		t.Fatal(err)
	}
	return res.Digest
}

// Who asks for a digest has the pages of that image, or an error: never pages that nothing is
// known of. And an image of a process is told from one that was made of a set.
func TestDigestIsOfTheImage(t *testing.T) {
	top := t.TempDir()
	set, ours, native := filepath.Join(top, "set"), filepath.Join(top, "ours"), filepath.Join(top, "native")
	if err := os.Mkdir(set, 0o700); err != nil {
		t.Fatal(err)
	}
	digest, other := writeImage(t, ours), writeImage(t, native, image.ProcessObject)
	for _, c := range []struct {
		args, want string
	}{
		{"-D " + set, ""},
		{"-D " + ours, ""},
		{"-D " + ours + " --image-digest " + digest, ""},
		{"-D " + set + " --image " + ours + " --image-digest " + digest, ""},
		{"-D " + ours + " --image-digest " + other, "not the image whose digest was asked for"},
		{"-D " + ours + " --image-digest=", "64 hex digits"},
		{"-D " + set + " --image-digest " + digest, "no image in " + set},
		{"-D " + set + " --image-digest " + digest + " --page-server --port 7", "--page-server"},
		{"-D " + native, "lazyrestore restore"},
		{"-D " + set + "/nothing/" + image.ManifestObject + " --image-digest " + digest, "no image in"},
	} {
		o, err := criucli.Parse(append([]string{"--no-default-config"}, strings.Fields(c.args)...), own...)
		if err != nil {
			t.Fatal(err)
		}
		var opts lazypages.Options
		closePages, err := openPages(t.Context(), o, &opts, slog.New(slog.DiscardHandler))
		if err == nil {
			closePages()
		}
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, not %q", c.args, err, c.want)
		}
	}
}
