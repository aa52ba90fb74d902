package lazyrestore_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lazyrestore/lazyrestore/pageserver/client"
)

// Servers are found out whose image is damaged, and others asked, until one has it whole.
func TestDamagedServer(t *testing.T) {
	t.Parallel()
	for _, damage := range []struct {
		object string
		from   int
		places int
		of     int // servers
	}{
		{"process.bin", 0, 5, 1},
		{"process.bin", 40, 5, 1},
		{"eager.raw", 40, 5, 1},
		{"pages.idx", 40, 5, 1},
		{"pages.lz4", 40, 5, 1},
		{"pages.lz4", 40, 1, 8}, // more than there are tries with one server
		{"manifest.json", 40, 5, 1},
	} {
		t.Run(fmt.Sprint(damage.object, " from ", damage.from, " of ", damage.of, " servers"), func(t *testing.T) {
			t.Parallel()
			s := start(t, "look")
			s.checkpoint(plainest)
			bad, good := t.TempDir(), t.TempDir()
			if err := os.CopyFS(filepath.Join(bad, "img"), os.DirFS(s.image)); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(bad, "img", damage.object)
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for i := damage.from; i < len(b); i += 1 + len(b)/damage.places {
				b[i] ^= 4
			}
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
			var sites []*site
			for range damage.of {
				sites = append(sites, newSite(t, bad))
			}
			s.publish(good, "img", append(sites, newSite(t, good))...)
			s.restore(filling)
			s.release()
			s.well()
		})
	}
}

// What a cache has of an image is damaged, be it what is read before the process runs: it is
// fetched anew, and no server is blamed.
func TestDamagedCache(t *testing.T) {
	t.Parallel()
	s := start(t, "look")
	s.checkpoint(plainest)
	root, cache := t.TempDir(), filepath.Join(t.TempDir(), "cache")
	s.publish(root, "img", newSite(t, root))
	opts := filling
	opts.Source.Cache = cache
	s.restore(opts)
	for _, damage := range []struct {
		object string
		at     func(size int) int
	}{
		{"process.bin", func(int) int { return 0 }},
		{"process.bin", func(size int) int { return size / 2 }},
		{"eager.raw", func(int) int { return 5 << 12 }},
	} {
		if err := s.proc.WaitPager(); err != nil {
			t.Fatal(err)
		}
		s.endRestored()
		files, err := filepath.Glob(filepath.Join(cache, "*", damage.object))
		if err != nil || len(files) != 1 {
			t.Fatalf("files of the cache: %q, %v", files, err)
		}
		b, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		b[damage.at(len(b))] ^= 1
		if err := os.WriteFile(files[0], b, 0o600); err != nil {
			t.Fatal(err)
		}
		var log lockedLog
		opts.Logger = slog.New(slog.NewTextHandler(&log, nil))
		s.restore(opts)
		if err := s.proc.WaitPager(); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(log.String(), "object="+damage.object) || strings.Contains(log.String(), "server gave damaged") {
			t.Errorf("with damage of %s in the cache the log says:\n%s", damage.object, log.String())
		}
	}
	s.release()
	s.well()
}

// One bit turns over on the way from the only server, of what is read before the process
// runs: it is asked for again.
func TestOneBitTurnsOver(t *testing.T) {
	t.Parallel()
	for _, damage := range []struct {
		object string
		at     int // the middle, if 0
	}{{"eager.raw", 0}, {"process.bin", 0}, {"process.bin", 8}} {
		t.Run(fmt.Sprint(damage.object, " at ", damage.at), func(t *testing.T) {
			t.Parallel()
			s := start(t, "look")
			s.checkpoint(plainest)
			b, err := os.ReadFile(filepath.Join(s.image, damage.object))
			if err != nil {
				t.Fatal(err)
			}
			at := damage.at
			if at == 0 {
				at = unlike(b, len(b)/2) + markerBytes - 1
			}
			f := flipper{marker: b[max(0, at+1-markerBytes) : at+1]}
			root := t.TempDir()
			s.publish(root, "img", newSite(t, root))
			opts := filling
			opts.Source.Dial = f.dial
			s.restore(opts)
			if !f.done.Load() {
				t.Error("no bit turned over")
			}
			s.release()
			s.well()
		})
	}
}

const markerBytes = 32

// unlike is a place from at on where what follows is not mostly zeros, and there once.
func unlike(b []byte, at int) int {
	for ; at < len(b)-markerBytes; at += 8 {
		if m := b[at : at+markerBytes]; bytes.Count(m, []byte{0}) < markerBytes/2 && bytes.Count(b, m) == 1 {
			break
		}
	}
	return at
}

// A flipper turns over a bit of the last byte of a marker, the first time that it comes. It may come in parts.
type flipper struct {
	marker []byte
	done   atomic.Bool
}

func (f *flipper) dial(ctx context.Context, server client.Server) (client.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(server.Host, strconv.Itoa(int(server.Port))))
	if err != nil {
		return nil, err
	}
	return &flipped{Conn: c, f: f}, nil
}

type flipped struct {
	net.Conn
	f    *flipper
	last []byte // of what was read, less than a marker
}

func (c *flipped) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	all := append(c.last, p[:n]...)
	if i := bytes.Index(all, c.f.marker); i >= 0 && !c.f.done.Swap(true) {
		p[i+len(c.f.marker)-1-len(c.last)] ^= 1
	}
	c.last = bytes.Clone(all[max(0, len(all)-len(c.f.marker)+1):])
	return n, err
}
