package main

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
)

const (
	defaultImage     = "./lazyrestore-%p"
	defaultChunkSize = 64 << 10
)

type checkpointVerb struct {
	*command
	opts   lazyrestore.CheckpointOptions
	remote remote
	image  string
	codec  codecFlag
}

func (c *command) checkpoint() *cli.Command {
	v := &checkpointVerb{command: c, image: defaultImage}
	v.opts.ChunkSize = defaultChunkSize
	flags := []cli.Flag{
		{
			Name: "image", Short: 'D', Arg: "IMAGE", Value: cli.String(&v.image), Operand: cli.OperandDirectory,
			Usage: "The image to write: a directory that is absent or empty. %j, %t, %h and %p stand for the job, the task, the host and the pid",
		},
		{
			Name: "leave-running", Short: 'R', Value: cli.Bool(&v.opts.LeaveRunning),
			Usage: "Let the process run on as soon as its memory has been read; without it, it is ended once the image is committed",
		},
		{
			Name: "codec", Arg: "zstd[:LEVEL]|s2|lz4|none", Choices: []string{"zstd", "s2", "lz4", "none"}, Value: &v.codec,
			Usage: "How chunks are compressed: zstd is smallest, lz4 quickest to restore from",
		},
		{
			Name: "chunk-size", Arg: "SIZE", Value: cli.Size(&v.opts.ChunkSize),
			Usage: "The memory that is compressed, checked and fetched as one: a power of two from 4 KiB to 4 MiB",
		},
		{
			Name: "workers", Arg: "N", Value: cli.Int(&v.opts.Workers, 1, verb.MostWorkers),
			Usage: "How many chunks are compressed at once; one for each CPU if not given",
		},
		{
			Name: "dry-run", Short: 'n', Value: cli.Bool(&v.opts.DryRun),
			Usage: "Only say whether an image can hold the process; write nothing",
		},
	}
	return &cli.Command{
		Name: "checkpoint", Args: "PID", MinArgs: 1, MaxArgs: 1, Operand: cli.OperandPID,
		Short: "write a running process to an image",
		Long: `Writes the process PID to an image, a directory. The process is stopped while it is read, and ends once the image
			is committed. With --leave-running it runs on as soon as its memory has been read.

			If anything fails the process runs on unharmed and no image is left behind. What an image cannot hold is refused
			(exit code 3), all of it in one message.`,
		Objects: []cli.Object{checkpointObject()},
		Flags:   slices.Concat(flags, v.remote.tlsFlags(), c.flagsWithProgress()),
		Hints: map[string]string{
			"-t": "the pid is an argument: lazyrestore checkpoint PID", "--tree": "the pid is an argument: lazyrestore checkpoint PID",
			"-p": "the pid is an argument: lazyrestore checkpoint PID", "--pid": "the pid is an argument: lazyrestore checkpoint PID",
			"-d": "a checkpoint has nothing to detach from; restore has --detach",
			"-o": "the image is named by -D", "--images-dir": "lazyrestore calls it --image",
			"-j": "terminals need no flag; for JSON write --json", "--shell-job": "terminals need no flag",
			"-c": "lazyrestore calls it --codec", "--compress": "lazyrestore calls it --codec",
		},
		Examples: []cli.Example{
			{Line: "lazyrestore checkpoint 4711", Does: "Write process 4711 to ./lazyrestore-4711 and end it."},
			{Line: "lazyrestore checkpoint -R -D /scratch/%j.%t --codec lz4 4711", Does: "Write it to a place named after the Slurm job and task; let it run on."},
		},
		Run: v.run,
	}
}

func checkpointObject() cli.Object {
	return cli.Object{Of: "--json", Rows: `
		image         the image, as it was named (a dry run writes none)
		digest        "sha256:" and 64 hex digits, as --image-digest takes it; empty after a dry run
		frozen_ms     for how long the process stood still
		total_ms      for how long all of it took
		memory_bytes  all memory that was looked at, zero pages too
		zero_bytes    of that zero pages, which are not stored
		stored_bytes  what lazy_bytes take in the image, compressed
		lazy_bytes    what a restore brings when it is touched; after a dry run with the zero pages
		eager_bytes   what a restore brings before the process runs
		threads       how many threads the process has
		mappings      how many mappings it has
		warnings[]    what is not kept, in words; left out if there are none`}
}

func (v *checkpointVerb) run(args []string) error {
	pid, err := parsePID(args[0])
	if err != nil {
		return err
	}
	if !chunk.ValidSize(v.opts.ChunkSize) || v.opts.ChunkSize > verb.LargestChunk {
		return &cli.UsageError{
			Problem: "--chunk-size " + cmp.Or(cli.Size(&v.opts.ChunkSize).String(), "0") + " cannot be had",
			Hint:    verb.ChunkSizes,
		}
	}
	if v.image == "" {
		return &cli.UsageError{Problem: "--image names nothing", Hint: "the default is " + defaultImage}
	}
	if scheme, _, ok := strings.Cut(v.image, "://"); ok && !strings.Contains(scheme, "/") {
		return &cli.UsageError{
			Problem: "--image " + v.image + ": a checkpoint writes to a directory",
			Hint:    "lazyrestore serve hands out what is in one",
		}
	}
	if v.opts.Dir, err = namesOf(pid).expand(v.image); err != nil {
		return err
	}
	v.opts.Codec = v.codec.String()
	v.opts.Logger = v.Logger(v.Stderr)
	meter := newMeter(v.Stderr, v.settle())
	v.opts.Progress = meter.report()

	// An interrupted checkpoint leaves no image, and a process that runs.
	ctx, stop := verb.UntilEnded()
	defer stop()
	v.opts.Source = v.remote.source()
	result, err := checkpointProcess(ctx, pid, v.opts)
	meter.clear()
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	v.report(pid, result)
	return nil
}

// report says what was done.
func (v *checkpointVerb) report(pid int, r *lazyrestore.CheckpointResult) {
	v.Acted = !v.opts.DryRun
	for _, w := range r.Warnings {
		v.Note("warning: " + w)
	}
	if v.JSON {
		v.PrintJSON(r)
		return
	}
	if v.Quiet {
		return
	}
	if v.opts.DryRun {
		v.Print(fmt.Sprintf("process %d can be held by an image: %s in %s, %s\n", pid, sizeText(r.MemoryBytes),
			plural(r.Mappings, "mapping"), plural(r.Threads, "thread")))
		return
	}
	var b strings.Builder
	fmt.Fprintf(&b, "process %d: %s in %s, %s\n", pid, sizeText(r.MemoryBytes), plural(r.Mappings, "mapping"), plural(r.Threads, "thread"))
	fmt.Fprintf(&b, "image %s: %s stored, %s zero, in %s; the process stood still for %s", r.Image, sizeText(r.StoredBytes),
		sizeText(r.ZeroBytes), timeText(milliseconds(r.TotalMS)), timeText(milliseconds(r.FrozenMS)))
	if v.opts.LeaveRunning {
		b.WriteString(" and runs on")
	}
	fmt.Fprintf(&b, "\ndigest %s\n", r.Digest)
	v.Print(b.String())
}

// parsePID reads a process id.
func parsePID(text string) (int, error) {
	pid, err := strconv.Atoi(text)
	if err != nil || pid <= 0 {
		return 0, &cli.UsageError{Problem: `"` + text + `" is no pid`, Hint: "a pid is a number, as ps and pgrep print it"}
	}
	if pid == os.Getpid() {
		return 0, &cli.UsageError{Problem: "process " + text + " is this command itself", Hint: "name another process"}
	}
	return pid, nil
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// codecFlag is a codec as chunk.ParseSpec reads it.
type codecFlag struct{ text string }

func (f *codecFlag) String() string {
	if f.text == "" {
		return chunk.DefaultSpec.String()
	}
	return f.text
}

func (f *codecFlag) Set(text string) error {
	if _, err := chunk.ParseSpec(text); err != nil {
		return err
	}
	f.text = text
	return nil
}
