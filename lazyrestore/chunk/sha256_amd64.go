package chunk

// sha256Two hashes as many blocks of 64 bytes, one at least, from p into a and
// from q into b.
//
//go:noescape
func sha256Two(a, b *lane, p, q *byte, blocks int)

// hasSHA reports whether the processor has what sha256Two uses.
func hasSHA() bool
