package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/native"
	"github.com/lazyrestore/lazyrestore/pageserver/client"
)

// inspection is what inspect --json prints.
type inspection struct {
	Image    string          `json:"image"`
	Digest   string          `json:"digest"`
	Manifest *image.Manifest `json:"manifest"`
	State    *native.State   `json:"state"` // what process.bin holds; null for an image made of CRIU's
}

func (c *command) inspect() *cli.Command {
	r := new(remote)
	return &cli.Command{
		Name: "inspect", Args: "IMAGE", MinArgs: 1, MaxArgs: 1, Operand: cli.OperandDirectory,
		Short: "say what an image holds",
		Long: `Says what an image holds and what a machine needs to restore it. With --json, all that is known of the process:
			its threads, mappings and descriptors. The pages are not read; verify does that.

			IMAGE is a directory, or an image of page servers as in restore. The address of a server without a name lists
			the images that it has.`,
		Objects: inspectObjects(),
		Flags:   append(r.tlsFlags(), c.Command.Flags()...),
		Examples: []cli.Example{
			{Line: "lazyrestore inspect lazyrestore-4711", Does: "Say what the image holds."},
			{Line: "lazyrestore inspect tcp://node1", Does: "List the images of the page server on node1."},
		},
		Run: func(args []string) error {
			if addr, err := client.ParseAddress(args[0]); err == nil && addr.Image == "" {
				return c.listImages(addr, r)
			}
			return c.inspectImage(args[0], r)
		},
	}
}

func inspectObjects() []cli.Object {
	return []cli.Object{{Of: "--json", Rows: `
		image                           the image, as it was named
		digest                          of the image
		manifest.format                 "lazyrestore-image"
		manifest.version                of the format
		manifest.writer                 the program that wrote it
		manifest.created                when
		manifest.codec                  how chunks are compressed
		manifest.chunk_size             bytes of plain data in a full one
		manifest.machine.arch           the processor that it needs
		manifest.machine.xfeatures      state components of xsave that it needs, as a number
		manifest.machine.page_size      bytes
		manifest.machine.vdso           SHA-256 of the vDSO of the kernel that it needs
		manifest.layers[].digest        images that it builds on: none in version 1
		manifest.objects.NAME.size      of each object: bytes
		manifest.objects.NAME.sha256    of its content; that of the pages is in the index, by frames
		manifest.index_root             SHA-256 of the end of the index
		manifest.process.pid            the pid that it had; 0: the image was made of CRIU's
		manifest.process.comm           its name
		manifest.process.threads        how many threads it has
		manifest.process.mappings       how many mappings
		manifest.process.memory_bytes   all memory, zero pages too
		manifest.process.zero_bytes     of that zero pages, which are not stored
		manifest.process.stored_bytes   what the rest takes, compressed
		manifest.process.lazy_bytes     what a restore brings when it is touched
		manifest.process.eager_bytes    what it brings before the process runs
		state                           all that is known of the process, by the engine's own names, which may change; null for an image made of CRIU's`}, {Of: "--json with the address of a server", Rows: `
		servers[].server           the server
		servers[].images[].name    of each image: its name
		servers[].images[].bytes   the size of all its objects
		servers[].images[].digest  its digest`}}
}

func (c *command) inspectImage(path string, r *remote) error {
	ctx := context.Background()
	src, err := c.openSource(ctx, path, r)
	if err != nil {
		return verb.AboutImage(path, err)
	}
	defer src.Close()
	img, err := image.Open(ctx, src, image.OpenOptions{})
	if err != nil {
		return verb.AboutImage(path, err)
	}
	found := inspection{Image: path, Digest: img.Digest(), Manifest: img.Manifest()}
	if _, ours := found.Manifest.Objects[image.ProcessObject]; ours {
		if found.State, err = readState(ctx, img); err != nil {
			return verb.AboutImage(path, err)
		}
	}
	if c.JSON {
		c.PrintJSON(found)
		return nil
	}
	c.Print(found.text())
	return nil
}

// readState is what process.bin of an image holds.
func readState(ctx context.Context, img *image.Image) (*native.State, error) {
	text, err := img.ReadObject(ctx, image.ProcessObject)
	if err != nil {
		return nil, err
	}
	return native.DecodeState(text)
}

// text is the inspection for people.
func (in *inspection) text() string {
	m := in.Manifest
	p := &m.Process
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-9s %s\n", name, fmt.Sprintf(format, args...))
	}
	row("image", "%s", in.Image)
	row("digest", "%s", in.Digest)
	row("format", "%d, written by %s on %s", m.Version, m.Writer, m.Created.Local().Format(time.DateTime))
	switch tail := plural(p.Threads, "thread") + ", " + plural(p.Mappings, "mapping"); {
	case p.Comm != "":
		row("process", "%d (%s), %s", p.PID, p.Comm, tail)
	case p.PID != 0: // it was CRIU's, which has names elsewhere
		row("process", "%d, %s", p.PID, tail)
	}
	row("memory", "%s: %s zero, %s lazy, %s eager", sizeText(p.MemoryBytes), sizeText(p.ZeroBytes), sizeText(p.LazyBytes), sizeText(p.EagerBytes))
	row("stored", "%s, %s in chunks of %s", sizeText(p.StoredBytes), m.Codec, sizeText(uint64(m.ChunkSize)))
	row("machine", "%s, pages of %d bytes, xsave features %#x", m.Machine.Arch, m.Machine.PageSize, m.Machine.XFeatures)
	names := make([]string, 0, len(m.Objects))
	for name := range m.Objects {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		row("object", "%-13s %s", name, sizeText(uint64(m.Objects[name].Size)))
	}
	return b.String()
}
