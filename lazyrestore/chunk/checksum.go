package chunk

import (
	"crypto/sha256"
	"hash"
	"hash/crc32"
	"sync"
)

// DigestSize is the length of a Digest in bytes.
const DigestSize = 16

// A Digest is the first 16 bytes of a SHA-256.
type Digest [DigestSize]byte

// castagnoli is made with the first checksum, not when the program starts.
var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

// Checksum is the CRC-32C of b. It finds damage, not malice.
func Checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli()) }

// UpdateChecksum is the CRC-32C of what sum was taken of, followed by b.
func UpdateChecksum(sum uint32, b []byte) uint32 { return crc32.Update(sum, castagnoli(), b) }

// DigestOf is the digest of b.
func DigestOf(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest(sum[:DigestSize])
}

// A Digester makes digests of data in parts. The zero value is ready.
type Digester struct {
	h   hash.Hash
	sum [sha256.Size]byte
}

// Digest is the digest of all parts, one after the other.
func (d *Digester) Digest(parts ...[]byte) Digest {
	if len(parts) == 1 {
		return DigestOf(parts[0])
	}
	if d.h == nil {
		d.h = sha256.New()
	}
	d.h.Reset()
	for _, p := range parts {
		d.h.Write(p)
	}
	return Digest(d.h.Sum(d.sum[:0])[:DigestSize])
}
