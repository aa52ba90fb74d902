package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

// shownProblems is how many problems are listed for people; JSON has them all.
const shownProblems = 20

type verifyVerb struct {
	*command
	remote  remote
	workers int
	digest  string
}

func (c *command) verify() *cli.Command {
	v := &verifyVerb{command: c}
	flags := append([]cli.Flag{
		{Name: "image-digest", Arg: "DIGEST", Value: verb.Digest(&v.digest), Usage: "The digest that the image must have, as checkpoint printed it"},
		{Name: "workers", Arg: "N", Value: cli.Int(&v.workers, 1, verb.MostWorkers), Usage: "How many chunks are checked at once; one for each CPU if not given"},
	}, v.remote.tlsFlags()...)
	return &cli.Command{
		Name: "verify", Args: "IMAGE", MinArgs: 1, MaxArgs: 1, Operand: cli.OperandDirectory,
		Short: "read all of an image and say what is wrong with it",
		Long: `Reads all of an image, decodes it, the state of the process too, and lists every damaged part: the object, the place
			in it, and the memory that is lost by it. The exit code is 4 if there is one. IMAGE is a directory, or an image of page servers as in restore.`,
		Objects: []cli.Object{{Of: "--json", Rows: `
			image              the image, as it was named
			digest             of the image; left out if its manifest cannot be read
			ok                 whether it is whole; if not, the exit code is 4
			frames             how many frames were checked
			bytes              how many bytes were read
			problems[].object  of each damaged part: the object that it is in
			problems[].offset  where it is in that
			problems[].frame   the frame, if it is one
			problems[].start   where the memory begins that is lost by it, if that is known
			problems[].end     where that ends
			problems[].error   what is wrong, in words`}},
		Flags: append(flags, c.flagsWithProgress()...),
		Run:   func(args []string) error { return v.run(args[0]) },
	}
}

func (v *verifyVerb) run(path string) error {
	ctx, stop := verb.UntilEnded()
	defer stop()
	src, err := v.openSource(ctx, path, &v.remote)
	if err != nil {
		return verb.AboutImage(path, err)
	}
	defer src.Close()
	meter := newMeter(v.Stderr, v.settle())
	opts := image.VerifyOptions{Workers: v.workers, Digest: v.digest}
	if show := meter.report(); show != nil {
		opts.Progress = func(done, total uint64) {
			show(lazyrestore.Progress{Phase: "verify", Done: done, Total: total})
		}
	}
	report, err := image.Verify(ctx, src, opts)
	meter.clear()
	if err == nil {
		err = verifyState(ctx, src, &report)
	}
	if err != nil {
		return verb.AboutImage(path, err)
	}
	return v.report(path, report)
}

// verifyState looks whether process.bin, of an image that is whole otherwise, can be decoded:
// its sums say no more than that it is what was written.
func verifyState(ctx context.Context, src image.Source, r *image.Report) error {
	if !r.OK() {
		return nil
	}
	if _, ours := r.Manifest.Objects[image.ProcessObject]; !ours {
		return nil
	}
	img, err := image.Open(ctx, src, image.OpenOptions{Digest: r.Digest})
	if err != nil {
		return err
	}
	_, err = readState(ctx, img)
	var damage *image.DamagedError
	if errors.As(err, &damage) {
		r.Problems = append(r.Problems, damage)
		return nil
	}
	return err
}

// report tells what was found; a damaged image is an error.
func (v *verifyVerb) report(path string, r image.Report) error {
	if v.JSON {
		v.PrintJSON(verification(path, r))
	}
	if r.OK() {
		if !v.Quiet {
			v.Print(fmt.Sprintf("image %s is whole: %s in %s\ndigest %s\n", path, sizeText(r.Bytes), plural(r.Frames, "frame"), r.Digest))
		}
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "lazyrestore verify: image %s is damaged in %s:\n", path, plural(len(r.Problems), "place"))
	for _, p := range r.Problems[:min(len(r.Problems), shownProblems)] {
		b.WriteString("  " + p.Error() + "\n")
	}
	if more := len(r.Problems) - shownProblems; more > 0 {
		fmt.Fprintf(&b, "  and %d more, which --json lists\n", more)
	}
	io.WriteString(v.Stderr, verb.Printable(b.String()))
	return verb.Status(verb.Damaged)
}

// verified is what verify --json prints.
type verified struct {
	Image    string    `json:"image"`
	Digest   string    `json:"digest,omitempty"`
	OK       bool      `json:"ok"`
	Frames   int       `json:"frames"`
	Bytes    uint64    `json:"bytes"`
	Problems []problem `json:"problems"`
}

// problem is one damaged part of an image.
type problem struct {
	Object string `json:"object"`
	Offset int64  `json:"offset"`
	Frame  *int   `json:"frame,omitempty"`
	Start  string `json:"start,omitempty"` // of the memory lost by it
	End    string `json:"end,omitempty"`
	Error  string `json:"error"`
}

func verification(path string, r image.Report) verified {
	out := verified{Image: path, Digest: r.Digest, OK: r.OK(), Frames: r.Frames, Bytes: r.Bytes, Problems: []problem{}}
	for _, d := range r.Problems {
		p := problem{Object: d.Object, Offset: d.Offset, Error: d.Error()}
		if d.Frame != image.NoFrame {
			p.Frame = &d.Frame
		}
		if !d.Range.Empty() {
			p.Start, p.End = d.Range.Start.String(), d.Range.End.String()
		}
		out.Problems = append(out.Problems, p)
	}
	return out
}
