package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
)

// SealIndex puts the checksums of an index right, as far as its directory can
// be read: a fuzzer then gets to what is behind them.
func SealIndex(b []byte) []byte {
	size := int64(len(b))
	f, err := parseFooter(b, size)
	if err != nil {
		return b
	}
	tail := b[f.directory:]
	for i := range int(f.segments) {
		e := tail[i*segmentBytes : (i+1)*segmentBytes]
		s := decodeSegment(e)
		if s.offset < 0 || s.offset > size || s.digestsAt() < s.offset || s.digestsAt() > size {
			continue
		}
		s.tablesSum = chunk.Checksum(b[s.offset:s.digestsAt()])
		appendSegment(e[:0], &s)
	}
	binary.LittleEndian.PutUint32(b[size-4:], chunk.Checksum(tail[:len(tail)-4]))
	return b
}

// LoadIndexOf loads the index b from src, as if a manifest named it.
func LoadIndexOf(src Source, b []byte, pages int64) (*Index, error) {
	return imageOf(src, b, pages).LoadIndex(context.Background())
}

// OpenIndexOf opens it.
func OpenIndexOf(src Source, b []byte, pages int64) (*Index, error) {
	return imageOf(src, b, pages).OpenIndex(context.Background())
}

func imageOf(src Source, b []byte, pages int64) *Image {
	whole := sha256.Sum256(b)
	m := &Manifest{ChunkSize: 8192, Objects: map[string]Object{
		IndexObject: {Size: int64(len(b)), SHA256: hex.EncodeToString(whole[:])}, "pages.lz4": {Size: pages},
	}}
	if f, err := parseFooter(b, int64(len(b))); err == nil {
		sum := sha256.Sum256(b[f.directory:])
		m.IndexRoot = hex.EncodeToString(sum[:])
	}
	return &Image{src: src, manifest: m, codec: chunk.LZ4, pages: "pages.lz4"}
}

// RewriteIndex parses an index and writes it again.
func RewriteIndex(b []byte) ([]byte, error) {
	f, err := parseFooter(b, int64(len(b)))
	if err != nil {
		return nil, err
	}
	f, segs, err := parseTail(b[f.directory:], int64(len(b)))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	x := newIndexWriter(&out, int(f.chunkSize))
	for _, s := range segs {
		for i := range s.frames {
			e := decodeFrame(b[s.offset+int64(i)*frameBytes:])
			var runs []Run
			for j := range int(e.runs) {
				runs = append(runs, decodeRun(b[s.runsAt()+int64(int(e.firstRun)+j)*runBytes:]))
			}
			digest := chunk.Digest(b[s.digestsAt()+int64(i)*digestBytes:])
			if err := x.add(e.Frame, digest, runs); err != nil {
				return nil, err
			}
		}
	}
	_, err = x.finish()
	return out.Bytes(), err
}

// QuickManifest is quickManifest.
var QuickManifest = quickManifest
