// Command lazyrestore-export is the verb export of lazyrestore, which executes
// it from beside itself: it makes the CRIU image set again that an image was
// made of.
package main

import (
	"errors"
	"os"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/cmd/internal/criucli"
	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/convert"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
)

// treeFile is a file that every set has which can be restored.
const treeFile = "pstree.img"

func main() { os.Exit(verb.External(exportVerb, os.Args[1:], os.Stdout, os.Stderr)) }

type exporter struct {
	*verb.Command
	digest string
}

// A result is what --json prints.
type result struct {
	Set    string `json:"set"`
	Digest string `json:"digest"`
}

func object() cli.Object {
	return cli.Object{Of: "--json", Rows: `
		set     the image set, as it was named
		digest  of the image that it was made of`}
}

func exportVerb(c *verb.Command) *cli.Command {
	v := &exporter{Command: c}
	flags := []cli.Flag{{
		Name: "image-digest", Arg: "SHA256", Value: verb.Digest(&v.digest),
		Usage: "Refuse an image with another digest: with it, every byte that is exported is the one that was written",
	}}
	return &cli.Command{
		Name: "export", Args: "IMAGE SET", MinArgs: 2, MaxArgs: 2, Operand: cli.OperandDirectory,
		Short: "make CRIU's images of an image",
		Long: `Makes the image set that IMAGE was made of, by lazyrestore import or lazyrestore page-server --codec, in the
			directory SET, which is absent or empty before. IMAGE is a directory, or tcp://HOST:PORT/NAME of a lazyrestore
			serve. The files are those that CRIU wrote, to the byte, but where the set built on others: it then holds
			all pages itself. Of a dump that came to a page server IMAGE has the memory alone, also where the other
			files were copied into its directory: that is said, and they are to be copied into SET too.

			Every byte is checked on the way; on an error nothing is left in SET.`,
		Objects: []cli.Object{object()},
		Flags:   append(flags, c.Flags()...),
		Examples: []cli.Example{
			{Line: "lazyrestore export image/ dump/", Does: "make a directory that criu restore -D dump/ takes"},
		},
		Run: v.run,
	}
}

func (v *exporter) run(args []string) error {
	ctx, stop := verb.UntilEnded()
	defer stop()
	src, err := lazyrestore.OpenSource(ctx, args[0], lazyrestore.SourceOptions{}, v.Logger(v.Stderr))
	if err != nil {
		return err
	}
	defer src.Close()
	im, err := image.Open(ctx, src, image.OpenOptions{Digest: v.digest})
	if err != nil {
		return err
	}
	staging, err := store.CreateDir(args[1])
	if err != nil {
		return err
	}
	if err := convert.Export(ctx, im, staging); err != nil {
		return errors.Join(criucli.Damaged(err), staging.Abort())
	}
	if err := staging.Commit(); err != nil {
		return err
	}
	if _, ok := im.Manifest().Objects[treeFile]; !ok {
		v.Logger(v.Stderr).Warn("the image has the memory alone: the other images of the dump are to be copied into the set", "without", treeFile)
	}
	v.Acted = true
	if v.JSON {
		v.PrintJSON(result{args[1], im.Digest()})
	}
	return nil
}
