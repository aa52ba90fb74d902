package main

import (
	"path/filepath"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/criutest"
)

// The recipe of the README: runc starts CRIU, and the daemon meets it in the
// work directory. The pages come from what runc has written, or from an image
// made of that, and the daemon may be killed in between.
func TestRunc(t *testing.T) {
	criutest.NeedRunc(t)
	for _, tt := range []struct {
		name, scene string
		compressed  bool
	}{
		{"a process", "plain", false},
		{"a tree from a compressed image", "tree", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			images, work := filepath.Join(dir, "img"), filepath.Join(dir, "work")
			c := criutest.StartContainer(t, tt.scene, 16)
			c.Checkpoint(t, images, work)
			if tt.compressed {
				images = importSet(t, images, chunk.Zstd)
			}
			d := start(t, images, "-W", work, "--background", "none")
			c.Restore(t, images, work)
			d.kill(t)
			c.Tell(t, "go")
			d = start(t, images, "-W", work, "--resume")
			c.Wait(t)
			d.wait(t)
		})
	}
}
