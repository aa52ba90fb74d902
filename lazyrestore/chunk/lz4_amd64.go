package chunk

// lz4SegmentAsm is lz4SegmentGo, with which it shares its numbers: seg has n
// bytes, and anchor is where it is in seg, or negative before it.
//
//go:noescape
func lz4SegmentAsm(table *lz4Table, dst, seg *byte, n, anchor int) (newAnchor, d int)

func lz4Segments(t *lz4Table, dst, src []byte, start, anchor int) (newAnchor, n int) {
	newAnchor, n = lz4SegmentAsm(t, &dst[0], &src[start], len(src)-start, anchor-start)
	return start + newAnchor, n
}
