// Package image is the format of an image and what writes, reads and verifies
// it. FORMAT.md, beside this file, describes the format itself. The package is
// pure: it makes no system calls, and knows neither where objects are kept
// (Source, Sink) nor what a process is.
//
// An image is a few immutable objects. A Writer makes them: memory goes
// through its workers into frames of the pages object, every frame and the
// pages it holds are noted in the index, and the manifest comes last, with the
// sizes and hashes of all others; its own SHA-256 is the image's digest.
//
// A reader goes the other way: Open reads the manifest, Image.LoadIndex the
// index, or Image.OpenIndex and Index.Load parts of it, and a FrameReader in each
// worker gives the plain data of frames. Not a byte is handed out before it has
// been checked: by CRC-32C against damage, and where the user has pinned the
// image's digest by SHA-256, from that digest to the manifest, from it to the
// index, and from there to every frame.
//
// An Image never changes, nor does what is loaded of an Index; both may be shared
// by goroutines. A Writer and a FrameReader belong to one goroutine each.
package image
