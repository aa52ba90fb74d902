// Package chunk turns plain memory into frames and frames back into memory.
//
// A chunk is a few pages (64 KiB unless asked otherwise) that are compressed,
// checked and shipped as one unit; a frame is a chunk as stored. The package
// owns the codecs, the finding of zero pages, the checksums, and the seek
// table which makes a file of zstd frames one of the public zstd seekable
// format. It is pure: no system calls, no state between calls but scratch
// memory, nothing made when the program starts.
//
// An Encoder and a Decoder each belong to one goroutine; make one per worker.
// They make their tables with the first frame that needs them, so that
// creating one costs nothing.
package chunk

import "github.com/lazyrestore/lazyrestore/lazyrestore/page"

// The sizes that a chunk may have, in bytes of plain data. All are powers of
// two; MinSize is one page.
const (
	MinSize     = page.Size
	MaxSize     = 16 << 20
	DefaultSize = 64 << 10
)

// ValidSize reports whether n can be the chunk size of an image.
func ValidSize(n int) bool { return n >= MinSize && n <= MaxSize && n&(n-1) == 0 }
