package store_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store/storetest"
)

// A counted is a source that is not in memory, and counts what is read of it.
type counted struct {
	image.Source
	bytes    atomic.Int64
	rejected atomic.Int64
	damage   atomic.Bool // turns a bit over in all that is read
}

func (c *counted) ReadRange(ctx context.Context, object string, p []byte, off int64, lane image.Lane) error {
	c.bytes.Add(int64(len(p)))
	err := c.Source.ReadRange(ctx, object, p, off, lane)
	if c.damage.Load() && len(p) > 0 {
		p[len(p)/2] ^= 1
	}
	return err
}

func (c *counted) Reject(string, int64, int64, error) (again bool) {
	c.rejected.Add(1)
	return false
}

func digest(c string) string { return "sha256:" + strings.Repeat(c, 64) }

// cached opens a cache in dir over objects.
func cached(t *testing.T, dir, digest string, objects storetest.Objects, opts store.CacheOptions) (*store.Cache, *counted) {
	t.Helper()
	m := new(imagetest.Mem)
	for name, b := range objects {
		m.Set(name, b)
	}
	under := &counted{Source: m}
	c, err := store.OpenCache(dir, digest, under, opts)
	if err != nil {
		t.Fatal(err)
	}
	return c, under
}

func random(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// readPieces reads all of pages.lz4 in pieces of odd sizes, in any order.
func readPieces(t *testing.T, c *store.Cache, want []byte, seed uint64) {
	t.Helper()
	const piece = 10_007
	r := rand.New(rand.NewPCG(seed, 1))
	for _, i := range r.Perm((len(want) + piece - 1) / piece) {
		off := i * piece
		p := make([]byte, min(piece, len(want)-off))
		if err := c.ReadRange(t.Context(), "pages.lz4", p, int64(off), image.Lane(i%2)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, want[off:off+len(p)]) {
			t.Fatalf("piece at %d differs", off)
		}
	}
}

func TestCacheConformance(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	// The second time around all is there.
	for _, name := range []string{"empty", "filled"} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T, objects storetest.Objects) image.Source {
				c, _ := cached(t, dir, digest("a"), objects, store.CacheOptions{})
				return c
			})
		})
	}
}

// What was read once is not asked for again, by this reader or the next one.
func TestCacheKeeps(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	want := random(1, 1<<20+123)
	objects := storetest.Objects{"pages.lz4": want}
	first, under := cached(t, dir, digest("a"), objects, store.CacheOptions{})
	readPieces(t, first, want, 1)
	readPieces(t, first, want, 2)
	if n := under.bytes.Load(); n != int64(len(want)) {
		t.Errorf("%d bytes were read of the source, want %d", n, len(want))
	}
	second, under := cached(t, dir, digest("a"), objects, store.CacheOptions{})
	readPieces(t, second, want, 3)
	if n := under.bytes.Load(); n != 0 {
		t.Errorf("the second reader read %d bytes of the source", n)
	}
	if n := second.Hits(); n != uint64(len(want)) {
		t.Errorf("Hits = %d, want %d", n, len(want))
	}
	ok, err := second.ReadNow("pages.lz4", make([]byte, 5000), 777)
	if !ok || err != nil {
		t.Errorf("ReadNow = %v, %v", ok, err)
	}
	// Another image has nothing to do with it.
	other := random(2, len(want))
	third, _ := cached(t, dir, digest("b"), storetest.Objects{"pages.lz4": other}, store.CacheOptions{})
	readPieces(t, third, other, 4)
	for _, c := range []*store.Cache{first, second, third} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Many readers of one image at once, each with handles of its own.
func TestCacheShared(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	want := random(3, 1<<20)
	var wg sync.WaitGroup
	for g := range 8 {
		c, _ := cached(t, dir, digest("a"), storetest.Objects{"pages.lz4": want}, store.CacheOptions{})
		wg.Go(func() {
			readPieces(t, c, want, uint64(g))
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// Damage in the cache's own files is fetched anew, and is no fault of the
// source; damage from the source is.
func TestCacheReject(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	want := random(4, 300_000)
	objects := storetest.Objects{"pages.lz4": want}
	c, _ := cached(t, dir, digest("a"), objects, store.CacheOptions{})
	readPieces(t, c, want, 1)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "sha256-"+strings.Repeat("a", 64), "pages.lz4")
	b, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(b, want) {
		t.Fatalf("the file of the cache: %v, or not the object", err)
	}
	b[100_000] ^= 1
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	c, under := cached(t, dir, digest("a"), objects, store.CacheOptions{})
	p := make([]byte, 20_000)
	read := func() bool {
		if err := c.ReadRange(t.Context(), "pages.lz4", p, 90_000, image.Demand); err != nil {
			t.Fatal(err)
		}
		return bytes.Equal(p, want[90_000:110_000])
	}
	if read() {
		t.Fatal("the damage is not there")
	}
	if !c.Reject("pages.lz4", 90_000, 20_000, errors.New("checksum")) {
		t.Error("damage of the cache's own is said to be the source's")
	}
	if under.rejected.Load() != 0 {
		t.Error("the source was told of the cache's own damage")
	}
	if !read() {
		t.Error("what was rejected came again")
	}
	c.Reject("pages.lz4", 0, 50_000, errors.New("checksum"))
	under.damage.Store(true)
	if err := c.ReadRange(t.Context(), "pages.lz4", p, 0, image.Demand); err != nil {
		t.Fatal(err)
	}
	under.damage.Store(false)
	if c.Reject("pages.lz4", 0, 20_000, errors.New("checksum")) {
		t.Error("what the source gives no better is said to be worth another read")
	}
	if under.rejected.Load() != 1 {
		t.Errorf("the source was told %d times of what it gave", under.rejected.Load())
	}
	readPieces(t, c, want, 2)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// A cache stays within its limit: what was used longest ago goes, what is in
// use stays.
func TestCacheLimit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	const n = 1 << 20
	limit := store.CacheOptions{Limit: 4 * n}
	// Until all is kept: what comes while room is being made is not.
	fill := func(c *store.Cache, under *counted, want []byte) {
		for before := int64(-1); under.bytes.Load() != before; {
			before = under.bytes.Load()
			readPieces(t, c, want, 1)
		}
	}
	inUse, under := cached(t, dir, digest("0"), storetest.Objects{"pages.lz4": random(0, n)}, limit)
	fill(inUse, under, random(0, n))
	for i, name := range []string{"1", "2", "3", "4", "5", "6"} {
		want := random(byte(i+1), n)
		c, under := cached(t, dir, digest(name), storetest.Objects{"pages.lz4": want}, limit)
		fill(c, under, want)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	images := names(t, dir)
	if len(images) > 4 || images[0] != "sha256-"+strings.Repeat("0", 64) || images[len(images)-1] != "sha256-"+strings.Repeat("6", 64) {
		t.Errorf("the cache has %q", images)
	}
	if err := inUse.Close(); err != nil {
		t.Error(err)
	}
	// An image that is larger than the limit is read all the same.
	large := random(9, 2*n)
	c, _ := cached(t, dir, digest("9"), storetest.Objects{"pages.lz4": large}, store.CacheOptions{Limit: n / 2})
	readPieces(t, c, large, 1)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// A directory that others could have laid there is not used.
func TestCacheRefusesOpenDirectories(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	var about *fs.PathError
	if _, err := store.OpenCache(dir, digest("a"), new(imagetest.Mem), store.CacheOptions{}); !errors.As(err, &about) {
		t.Errorf("OpenCache: %v", err)
	}
}

// An eager is a source that has all at hand, also beyond the end of an object.
type eager struct{ image.Source }

func (eager) ReadNow(string, []byte, int64) (bool, error) { return true, nil }

// What a source gives beyond an object is not kept, nor does the cache's file grow by it.
func TestCacheKeepsNothingBeyondTheEnd(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	want := random(5, 10_000)
	m := new(imagetest.Mem)
	m.Set("pages.lz4", want)
	c, err := store.OpenCache(dir, digest("a"), eager{m}, store.CacheOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	readPieces(t, c, want, 1)
	if ok, err := c.ReadNow("pages.lz4", make([]byte, 5000), 7000); !ok || err != nil {
		t.Errorf("ReadNow = %v, %v", ok, err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*", "pages.lz4"))
	if b, err := os.ReadFile(files[0]); err != nil || !bytes.Equal(b, want) {
		t.Errorf("the cache has %d bytes, want the %d of the object: %v", len(b), len(want), err)
	}
}
