package lazyrestore

import (
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/native"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A process can be let go before its image is committed, and the image is whole
// all the same.
func TestReadBeforeCommitted(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	cmd := exec.Command("/bin/sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	frozen, err := native.Freeze(t.Context(), cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer frozen.Release()
	if err := frozen.Capture(t.Context(), native.Owed{}); err != nil {
		t.Fatal(err)
	}
	opts := CheckpointOptions{Dir: filepath.Join(t.TempDir(), "img"), Logger: slog.New(slog.DiscardHandler)}
	read := false
	err = writeImage(t.Context(), frozen, &owed{}, chunk.Spec{}, &opts, func() {
		read = true
		frozen.Thaw()
		if s, err := proc.ReadStatus(cmd.Process.Pid); err != nil || s.TracerPid != 0 {
			t.Errorf("it is traced by %d, %v", s.TracerPid, err)
		}
		if _, err := os.Stat(opts.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("its image is there already: %v", err)
		}
	}, new(CheckpointResult))
	if err != nil || !read {
		t.Fatalf("written: %v, told of the reading: %v", err, read)
	}
	src, err := store.OpenDir(opts.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if report, err := image.Verify(t.Context(), src, image.VerifyOptions{}); err != nil || !report.OK() {
		t.Errorf("the image: %+v, %v", report, err)
	}
}

// Memory of which its pager does not know what it holds is in no image.
func TestUnknownMemoryIsRefused(t *testing.T) {
	uffdtest.Need(t, "ptrace")
	cmd := exec.Command("/bin/sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	frozen, err := native.Freeze(t.Context(), cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer frozen.Release()
	err = frozen.Capture(t.Context(), native.Owed{Unknown: []string{"1000-2000"}})
	var refused *native.RefusedError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "memory 1000-2000: its pager does not know what it holds") {
		t.Errorf("%v", err)
	}
}
