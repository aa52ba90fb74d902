//go:build !amd64

package chunk

var lz4Segments lz4Segmenter = lz4SegmentGo
