package harness

import (
	"context"
	"fmt"
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
	if codec != "lz4" || chunk != "64KiB" {
		name += "-" + codec + "-" + chunk
	}
	return name
}

func (o *ours) Format() string {
	codec, chunk := o.settings()
	return fmt.Sprintf("ours-%s-%s", codec, chunk)
}

func (o *ours) Checkpoint(ctx context.Context, pid int, dir string, leave bool) *exec.Cmd {
	codec, chunk := o.settings()
	args := []string{"checkpoint", "--quiet", "-D", dir, "--codec", codec, "--chunk-size", chunk}
	if leave {
		args = append(args, "--leave-running")
	}
	return exec.CommandContext(ctx, o.bin, append(args, strconv.Itoa(pid))...)
}

// Prepare has nothing to do: one command restores.
func (o *ours) Prepare(context.Context, string) ([]*command, error) { return nil, nil }

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
	return exec.CommandContext(ctx, o.bin, append(args, filepath.Clean(dir))...)
}
