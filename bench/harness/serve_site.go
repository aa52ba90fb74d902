package harness

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	format "github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// A pageServer is lazyrestore serve at work, with one image whose pages need
// not make sense.
type pageServer struct {
	*command
	address string
	pages   string // the object's file
	size    int64
}

const (
	siteImage  = "site"
	siteObject = "pages.raw"
)

// servePages starts a server of size bytes of pages.
func (e *Env) servePages(ctx context.Context, size int64) (*pageServer, error) {
	dir := filepath.Join(e.path("served"), siteImage)
	s := &pageServer{pages: filepath.Join(dir, siteObject), size: size}
	if err := writeSite(dir, size); err != nil {
		return nil, err
	}
	var err error
	if s.command, s.address, err = serveDirectory(ctx, e.opts.Lazyrestore, dir); err != nil {
		return nil, err
	}
	e.keep(s.command)
	return s, nil
}

// serveDirectory starts lazyrestore serve on a port of the loopback address.
func serveDirectory(ctx context.Context, lazyrestore, dir string) (c *command, address string, err error) {
	cmd := exec.CommandContext(ctx, lazyrestore, "serve", "--quiet", "--json", "--port", "0", dir)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	if c, err = launch("lazyrestore serve", cmd); err != nil {
		return nil, "", err
	}
	var said struct{ Addresses []string }
	if err := json.NewDecoder(stdout).Decode(&said); err != nil || len(said.Addresses) == 0 {
		err = errors.Join(err, c.Stop())
		return nil, "", fmt.Errorf("wait for the page server: %w: %s", err, c.said)
	}
	return c, said.Addresses[0], nil
}

// writeSite writes an image that a server opens.
func writeSite(dir string, size int64) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	none := hex.EncodeToString(make([]byte, sha256.Size))
	m := &format.Manifest{
		Format: "lazyrestore-image", Version: format.FormatVersion, Codec: "none", ChunkSize: 64 << 10,
		Machine: format.Machine{PageSize: page.Size}, IndexRoot: none,
		Objects: map[string]format.Object{format.IndexObject: {SHA256: none}, siteObject: {Size: size}},
	}
	manifest, err := format.AppendManifest(nil, m)
	if err != nil {
		return err
	}
	for name, b := range map[string][]byte{format.ManifestObject: manifest, format.IndexObject: nil, siteObject: nil} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, siteObject), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i * 7)
	}
	for off := int64(0); off < size; off += int64(len(block)) {
		if _, err := f.WriteAt(block[:min(size-off, int64(len(block)))], off); err != nil {
			return err
		}
	}
	return nil
}

// A pageClient reads from a page server, and drops what it reads.
type pageClient struct {
	net.Conn
	d    *wire.Decoder
	drop []byte
}

// newPageClient connects, and opens the format.
func newPageClient(ctx context.Context, address string, id int) (*pageClient, error) {
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	hello := wire.ClientHello{Version: wire.Version, Client: [16]byte{byte(id), byte(id >> 8)}}.Append(nil)
	if _, err := nc.Write(wire.Open{Image: 1, Name: siteImage}.Append(hello, 1)); err != nil {
		nc.Close()
		return nil, err
	}
	c := &pageClient{Conn: nc, d: wire.NewDecoder(nc, wire.Client, 512)}
	for _, want := range []wire.Type{wire.TypeHello, wire.TypeOpened} {
		if m, err := c.d.Next(); err != nil || m.Type != want {
			nc.Close()
			return nil, fmt.Errorf("%v of the server, not %v: %w", m.Type, want, err)
		}
	}
	return c, nil
}

// readAll reads the pages once, as background, a few reads in flight.
func (c *pageClient) readAll(size int64) error {
	const (
		length   = 4 << 20
		inFlight = 4
	)
	if c.drop == nil {
		c.drop = make([]byte, 256<<10)
	}
	next, id, open := int64(0), uint32(1), 0
	for next < size || open > 0 {
		for ; next < size && open < inFlight; open++ {
			id++
			r := wire.Read{Image: 1, Length: length, Offset: next, Object: siteObject}
			if _, err := c.Write(r.Append(nil, id, wire.FlagBackground|wire.FlagShort)); err != nil {
				return err
			}
			next += length
		}
		m, err := c.d.Next()
		if err != nil {
			return err
		}
		if m.Type != wire.TypeData {
			return fmt.Errorf("%v of the server", m.Type)
		}
		for left := m.Data.Length; left > 0; {
			n := min(left, len(c.drop))
			if err := c.d.ReadPayload(c.drop[:n]); err != nil {
				return err
			}
			left -= n
		}
		if m.Flags&wire.FlagLast != 0 {
			open--
		}
	}
	return nil
}
