package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
)

// tailGuess is how much of the end of pages.idx is read first: the directory
// of 120 segments, which is 120 GiB in chunks of 64 KiB.
const tailGuess = 8 << 10

// loadWorkers is how many segments are read at once.
const loadWorkers = 4

// LoadIndex reads the index and checks it. Memory is taken only after sizes
// were found to fit the objects as they are; a 4 GiB process has about 2.6 MB
// of it, read in a millisecond or two. The sizes may be lies all the same, so
// that LoadIndexInto says so where alloc has no such memory. With a pinned digest (OpenOptions) all
// of it is checked by cryptographic digests, else by CRC-32C.
func (im *Image) LoadIndex(ctx context.Context) (*Index, error) {
	return im.LoadIndexInto(ctx, func(n int) []byte { return make([]byte, n) })
}

// LoadIndexInto is LoadIndex into memory that alloc gives, n zero bytes at a
// time, and that has to last as long as the Index is used; nil: there is none.
func (im *Image) LoadIndexInto(ctx context.Context, alloc func(n int) []byte) (*Index, error) {
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
	ix := &Index{
		chunkSize: int(f.chunkSize), pages: f.pages, segs: segs,
		frames: alloc(int(f.frames) * frameBytes), runs: alloc(int(f.runs) * runBytes),
	}
	if im.pinned {
		ix.digests = alloc(int(f.frames) * digestBytes)
	}
	if ix.frames == nil || ix.runs == nil || im.pinned && ix.digests == nil {
		return nil, fmt.Errorf("there is no memory for an index of %d bytes", size)
	}
	if err := im.loadSegments(ctx, ix); err != nil {
		return nil, err
	}
	return ix, ix.checkBorders()
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

// readTail reads the directory and the footer of an index of size bytes.
func (im *Image) readTail(ctx context.Context, size int64) ([]byte, error) {
	tail := make([]byte, min(size, tailGuess))
	if err := im.read(ctx, IndexObject, tail, size-int64(len(tail))); err != nil {
		return nil, err
	}
	f, err := parseFooter(tail, size)
	if err != nil {
		return nil, err
	}
	if n := size - f.directory; n > int64(len(tail)) {
		if tail, err = im.readWhole(ctx, IndexObject, f.directory, n); err != nil {
			return nil, err
		}
	}
	return tail[int64(len(tail))-(size-f.directory):], nil
}

// loadSegments reads and checks all segments, a few at a time.
func (im *Image) loadSegments(ctx context.Context, ix *Index) error {
	if len(ix.segs) <= 1 {
		for i := range ix.segs {
			return im.loadSegment(ctx, ix, &ix.segs[i])
		}
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan *segment)
	var wg sync.WaitGroup
	for range min(loadWorkers, len(ix.segs)) {
		wg.Go(func() {
			for s := range next {
				if err := im.loadSegment(ctx, ix, s); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := range ix.segs {
		if ctx.Err() != nil {
			break
		}
		next <- &ix.segs[i]
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}

// loadSegment reads one segment into its place in the tables.
func (im *Image) loadSegment(ctx context.Context, ix *Index, s *segment) error {
	frames := ix.frames[s.frameBase*frameBytes : (s.frameBase+s.frames)*frameBytes]
	runs := ix.runs[s.runBase*runBytes : (s.runBase+s.runs)*runBytes]
	if err := im.read(ctx, IndexObject, frames, s.offset); err != nil {
		return err
	}
	if err := im.read(ctx, IndexObject, runs, s.runsAt()); err != nil {
		return err
	}
	if got := chunk.UpdateChecksum(chunk.Checksum(frames), runs); got != s.tablesSum {
		return damaged(IndexObject, s.offset, "tables: checksum is %08x, not %08x", got, s.tablesSum)
	}
	if ix.digests != nil {
		digests := ix.digests[s.frameBase*digestBytes : (s.frameBase+s.frames)*digestBytes]
		if err := im.read(ctx, IndexObject, digests, s.digestsAt()); err != nil {
			return err
		}
		if tablesDigest(frames, runs) != s.tables || chunk.DigestOf(digests) != s.digests {
			return damaged(IndexObject, s.offset, "tables: wrong digest")
		}
	}
	return ix.checkSegment(s, func(plain int) int { return chunk.MaxFrame(im.codec, plain) })
}

// tablesDigest is the digest of a segment's frames and runs.
func tablesDigest(frames, runs []byte) chunk.Digest {
	h := sha256.New()
	h.Write(frames)
	h.Write(runs)
	var sum [sha256.Size]byte
	return chunk.Digest(h.Sum(sum[:0])[:digestBytes])
}
