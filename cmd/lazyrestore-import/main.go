// Command lazyrestore-import is the verb import of lazyrestore, which executes
// it from beside itself: it makes an image of a CRIU image set.
package main

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strconv"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/cmd/internal/criucli"
	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/convert"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

func main() { os.Exit(verb.External(importVerb, os.Args[1:], os.Stdout, os.Stderr)) }

// buildVersion is set by the linker, as lazyrestore's own is.
var buildVersion = "devel"

type importer struct {
	*verb.Command
	codec string
	opts  image.WriterOptions
}

func importVerb(c *verb.Command) *cli.Command {
	v := &importer{Command: c, codec: chunk.DefaultSpec.String()}
	v.opts.ChunkSize = chunk.DefaultSize
	flags := []cli.Flag{
		{
			Name: "codec", Arg: "zstd[:LEVEL]|s2|lz4|none", Choices: []string{"zstd", "s2", "lz4", "none"}, Value: cli.String(&v.codec),
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
	}
	return &cli.Command{
		Name: "import", Args: "SET IMAGE", MinArgs: 2, MaxArgs: 2, Operand: cli.OperandDirectory,
		Short: "make an image of CRIU's images",
		Long: `Makes the image IMAGE, a directory that is absent or empty, of the image set SET, a directory in which criu
			dump left its images. The set stays as it is. If it builds on others (criu dump --prev-images-dir), the pages
			that are in those come into the image, which stands alone.

			All files of the set are in the image, but for logs (*.log), pid files (*.pid) and what a restore from the
			set has left there, so that criu restore --lazy-pages starts directly from it, while lazyrestore lazy-pages, on the same directory, gives the pages from compressed chunks. Only with
			--lazy-pages: without it, CRIU finds no bytes for the lazy pages, and does not end. lazyrestore export makes
			the set again, to the byte.`,
		Objects: []cli.Object{object()},
		Flags:   append(flags, c.Flags()...),
		Examples: []cli.Example{
			{Line: "lazyrestore import dump/ image/", Does: "make a compressed image of what criu dump -D dump/ left"},
			{Line: "lazyrestore lazy-pages -D image/ --daemon && criu restore -D image/ --lazy-pages", Does: "restore from it"},
		},
		Run: v.run,
	}
}

// A result is what --json prints.
type result struct {
	Image  string `json:"image"`
	Digest string `json:"digest"`
	Memory uint64 `json:"memory_bytes"` // lazy pages
	Zero   uint64 `json:"zero_bytes"`   // of them zero
	Stored uint64 `json:"stored_bytes"` // what the rest takes
}

func object() cli.Object {
	return cli.Object{Of: "--json", Rows: `
		image         the image, as it was named
		digest        "sha256:" and 64 hex digits, as lazy-pages takes it as --image-digest
		memory_bytes  all pages of the set
		zero_bytes    of them zero pages, which are not stored
		stored_bytes  what the rest takes in the image, compressed`}
}

func (v *importer) run(args []string) error {
	ctx, stop := verb.UntilEnded()
	defer stop()
	var err error
	if v.opts.Spec, err = chunk.ParseSpec(v.codec); err != nil {
		return &cli.UsageError{Problem: "--codec " + v.codec, Hint: err.Error()}
	}
	if !chunk.ValidSize(v.opts.ChunkSize) || v.opts.ChunkSize > verb.LargestChunk {
		return &cli.UsageError{Problem: "--chunk-size " + strconv.Itoa(v.opts.ChunkSize), Hint: verb.ChunkSizes}
	}
	set, err := imgfile.Open(args[0])
	if err != nil {
		return err
	}
	res, err := v.convert(ctx, set, args[1])
	if err != nil {
		return criucli.Damaged(err)
	}
	if wire.OpenedBytes(res.Manifest.Names()) > wire.MaxReply {
		v.Logger(v.Stderr).Warn("lazyrestore serve cannot serve the image: it has too many files; page-server --lazy-pages can give its pages",
			"files", len(res.Manifest.Objects)+1)
	}
	v.Acted = true
	if v.JSON {
		v.PrintJSON(result{args[1], res.Digest, res.MemoryBytes, res.ZeroBytes, res.StoredBytes})
	}
	v.Logger(v.Stderr).Info("image written", "digest", res.Digest, "memory_bytes", res.MemoryBytes, "stored_bytes", res.StoredBytes)
	return nil
}

// convert writes the image, of which nothing is left on an error.
func (v *importer) convert(ctx context.Context, set *imgfile.Dir, path string) (image.Result, error) {
	var none image.Result
	staging, err := store.CreateDir(path)
	if err != nil {
		return none, err
	}
	w, err := image.NewWriter(staging, v.opts)
	if err != nil {
		return none, errors.Join(err, staging.Abort())
	}
	m, err := convert.Import(ctx, set, w)
	if err != nil {
		w.Abort()
		return none, errors.Join(err, staging.Abort())
	}
	m.Writer, m.Machine.Arch = "lazyrestore "+buildVersion, runtime.GOARCH
	res, err := w.Finish(ctx, m)
	if err != nil {
		return none, errors.Join(err, staging.Abort())
	}
	return res, staging.Commit()
}
