package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
)

// loadWorkers is how many segments are read at once.
const loadWorkers = 4

// LoadIndex reads the index and checks it. Memory is taken only after sizes
// were found to fit the objects as they are; a 4 GiB process has about 2.6 MB
// of it, read in some milliseconds. With a pinned digest (OpenOptions) all
// of it is checked by cryptographic digests, else by CRC-32C.
func (im *Image) LoadIndex(ctx context.Context) (*Index, error) {
	ix, err := im.OpenIndex(ctx)
	if err != nil {
		return nil, err
	}
	return ix, ix.loadAll(ctx)
}

// OpenIndex is LoadIndex without the segments, which are a thousandth of the
// index: Index.Load loads them. The source is told of damage.
func (im *Image) OpenIndex(ctx context.Context) (*Index, error) {
	if im.plain != nil {
		return im.plain, nil
	}
	size, err := im.objectSize(ctx, IndexObject)
	if err != nil {
		return nil, err
	}
	if _, err := im.objectSize(ctx, im.pages); err != nil {
		return nil, err
	}
	tail, err := im.readTail(ctx, size)
	if err != nil {
		return nil, err
	}
	ix, err := im.parseIndex(tail, size)
	if err != nil {
		im.reject(IndexObject, size-int64(len(tail)), int64(len(tail)), err)
	}
	return ix, err
}

// parseIndex makes an index of the tail of one of size bytes. The error is a DamagedError.
func (im *Image) parseIndex(tail []byte, size int64) (*Index, error) {
	if sum := sha256.Sum256(tail); hex.EncodeToString(sum[:]) != im.manifest.IndexRoot {
		return nil, damaged(IndexObject, size-int64(len(tail)), "not the index that %s names", ManifestObject)
	}
	f, segs, err := parseTail(tail, size)
	if err != nil {
		return nil, err
	}
	if int(f.chunkSize) != im.manifest.ChunkSize || f.pages > im.manifest.Objects[im.pages].Size {
		return nil, damaged(IndexObject, size-footerBytes, "chunks of %d bytes in %d bytes of frames: not as %s has it", f.chunkSize, f.pages, ManifestObject)
	}
	return &Index{
		im: im, chunkSize: int(f.chunkSize), pages: f.pages, frames: int(f.frames), runs: int(f.runs),
		segs: segs, tables: make([]atomic.Pointer[tables], len(segs)),
	}, nil
}

// objectSize is the size of an object, which must be what the manifest says.
func (im *Image) objectSize(ctx context.Context, name string) (int64, error) {
	want, ok := im.manifest.Objects[name]
	if !ok {
		return 0, fmt.Errorf("%s: %w", name, errNoObject)
	}
	size, err := im.src.Size(ctx, name)
	if err != nil {
		return 0, im.missing(name, err)
	}
	if size != want.Size {
		return 0, damaged(name, min(size, want.Size), "%d bytes long, not %d", size, want.Size)
	}
	return size, nil
}

// tailGuess is how much of the end of an index of size bytes is read first:
// the directory and the footer, as this package writes them, are less.
func tailGuess(size int64) int64 { return min(size, 1<<10+size/512, mostGuessed) }

// mostGuessed is enough for some hundred GiB of memory; what a source says of
// sizes may be a lie.
const mostGuessed = 256 << 10

// readTail reads the directory and the footer of an index of size bytes.
func (im *Image) readTail(ctx context.Context, size int64) ([]byte, error) {
	tail := make([]byte, tailGuess(size))
	if err := im.read(ctx, IndexObject, tail, size-int64(len(tail))); err != nil {
		return nil, err
	}
	f, err := parseFooter(tail, size)
	if errors.Is(err, ErrVersion) {
		_, whole := im.ReadObject(ctx, IndexObject) // nothing has checked what says so
		return nil, cmp.Or(whole, err)
	}
	if err != nil {
		im.reject(IndexObject, size-int64(len(tail)), int64(len(tail)), err)
		return nil, err
	}
	if n := size - f.directory; n > int64(len(tail)) {
		if tail, err = im.readWhole(ctx, IndexObject, f.directory, n); err != nil {
			return nil, err
		}
	}
	return tail[int64(len(tail))-(size-f.directory):], nil
}

// loadAll loads all segments, a few at a time.
func (ix *Index) loadAll(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(loadWorkers, len(ix.segs)) {
		wg.Go(func() {
			for i := range next {
				if err := ix.Load(ctx, i, make([]byte, ix.SegmentBytes(i)), Demand); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := range ix.segs {
		if ctx.Err() != nil {
			break
		}
		if !ix.Loaded(i) {
			next <- i
		}
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}

// SegmentBytes is how much memory segment i takes.
func (ix *Index) SegmentBytes(i int) int {
	s := &ix.segs[i]
	if ix.im != nil && ix.im.pinned {
		return int(s.end() - s.offset)
	}
	return int(s.digestsAt() - s.offset)
}

// Load reads segment i and checks it. Its tables lie in buf, SegmentBytes(i)
// bytes that have to last as long as the Index is used. Nothing becomes of buf
// if the segment is there by then. The source is told of damage, which is
// a DamagedError.
func (ix *Index) Load(ctx context.Context, i int, buf []byte, lane Lane) error {
	at := ix.segs[i].offset
	if err := ix.im.src.ReadRange(ctx, IndexObject, buf, at, lane); err != nil {
		return readError(IndexObject, at, err)
	}
	return ix.accept(i, buf)
}

// LoadNow is Load where the source has the segment in memory; where it has
// not, or cannot tell, ok is false.
func (ix *Index) LoadNow(i int, buf []byte) (ok bool, err error) {
	now, ok := ix.im.src.(Immediate)
	if !ok {
		return false, nil
	}
	at := ix.segs[i].offset
	if ok, err = now.ReadNow(IndexObject, buf, at); err != nil {
		return false, readError(IndexObject, at, err)
	}
	if !ok {
		return false, nil
	}
	err = ix.accept(i, buf)
	return err == nil, err
}

// accept checks the tables of segment i, and has them used.
func (ix *Index) accept(i int, buf []byte) error {
	t := ix.segs[i].cut(buf)
	err := ix.checkTables(i, t)
	if err == nil {
		ix.mu.Lock()
		defer ix.mu.Unlock()
		if ix.Loaded(i) {
			return nil
		}
		err = ix.checkBorders(i, t)
	}
	if err != nil {
		ix.im.reject(IndexObject, ix.segs[i].offset, int64(len(buf)), err)
		return err
	}
	ix.tables[i].Store(t)
	return nil
}

// cut is the tables in b, as they follow one another in the file.
func (s *segment) cut(b []byte) *tables {
	n, m := s.frames*frameBytes, s.frames*frameBytes+s.runs*runBytes
	t := &tables{frames: b[:n:n], runs: b[n:m:m]}
	if len(b) > m {
		t.digests = b[m:]
	}
	return t
}

// checkTables compares the sums of a segment's tables with the directory, and
// looks at what is in them.
func (ix *Index) checkTables(i int, t *tables) error {
	s := &ix.segs[i]
	if got := chunk.UpdateChecksum(chunk.Checksum(t.frames), t.runs); got != s.tablesSum {
		return damaged(IndexObject, s.offset, "tables: checksum is %08x, not %08x", got, s.tablesSum)
	}
	if t.digests != nil && (tablesDigest(t.frames, t.runs) != s.tables || chunk.DigestOf(t.digests) != s.digests) {
		return damaged(IndexObject, s.offset, "tables: wrong digest")
	}
	return ix.checkSegment(i, t)
}

// tablesDigest is the digest of a segment's frames and runs.
func tablesDigest(frames, runs []byte) chunk.Digest {
	h := sha256.New()
	h.Write(frames)
	h.Write(runs)
	var sum [sha256.Size]byte
	return chunk.Digest(h.Sum(sum[:0])[:digestBytes])
}
