package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// ours is lazyrestore. The zero value restores lazily with the background
// fill, from chunks of 64 KiB in LZ4.
type ours struct {
	bin string
	// codec and chunk are those of --codec and --chunk-size; "lz4" and
	// "64KiB" when empty.
	codec, chunk string
	eager        bool
	noBackground bool
	// stats is a file that says when all is resident; none when empty.
	stats string
	// trace is a file for the trace of the restore; none when empty.
	trace string
	// disk has the image on a disk, and nothing of it in the page cache.
	disk bool
}

func (o *ours) settings() (codec, chunk string) {
	codec, chunk = o.codec, o.chunk
	if codec == "" {
		codec = "lz4"
	}
	if chunk == "" {
		chunk = "64KiB"
	}
	return codec, chunk
}

func (o *ours) Name() string {
	codec, chunk := o.settings()
	name := "ours-lazy"
	if o.eager {
		name = "ours-eager"
	}
	if o.noBackground {
		name += "-nofill"
	}
	if o.disk {
		name += "-disk"
	}
	if codec != "lz4" || chunk != "64KiB" {
		name += "-" + codec + "-" + chunk
	}
	return name
}

func (o *ours) Format() string {
	codec, chunk := o.settings()
	format := fmt.Sprintf("ours-%s-%s", codec, chunk)
	if o.disk {
		format += "-disk"
	}
	return format
}

func (o *ours) Checkpoint(ctx context.Context, pid int, dir string, leave bool) *exec.Cmd {
	codec, chunk := o.settings()
	args := []string{"checkpoint", "--quiet", "-D", dir, "--codec", codec, "--chunk-size", chunk}
	if leave {
		args = append(args, "--leave-running")
	}
	return exec.CommandContext(ctx, o.bin, append(args, strconv.Itoa(pid))...)
}

// Prepare removes the statistics of an earlier restore; one command restores.
func (o *ours) Prepare(context.Context, string) ([]*command, error) {
	if o.stats == "" {
		return nil, nil
	}
	if err := os.Remove(o.stats); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return nil, nil
}

// A diskSubject has its images on a disk, and reads them from there.
type diskSubject interface{ onDisk() bool }

func (o *ours) onDisk() bool { return o.disk }

func wantsDisk(subject Subject) bool {
	d, ok := subject.(diskSubject)
	return ok && d.onDisk()
}

func (o *ours) Restore(ctx context.Context, dir string) *exec.Cmd {
	args := []string{"restore"}
	if o.eager {
		args = append(args, "--eager")
	}
	if o.noBackground {
		args = append(args, "--background=none")
	}
	if o.stats != "" {
		args = append(args, "--stats", o.stats)
	}
	if o.trace != "" {
		args = append(args, "--trace-file", o.trace)
	}
	return exec.CommandContext(ctx, o.bin, append(args, filepath.Clean(dir))...)
}
