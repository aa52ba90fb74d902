// Package imgfile reads and writes the image files of CRIU: those that say
// which tasks there are, what their memory is, and where its pages lie.
//
// An image set is a directory (Dir) with a file for each kind of thing. A
// file is magic numbers and then records, each a length and a protobuf message
// (Reader, Writer). Memory is in two files: a pagemap says which pages there
// are and whether this set holds them, the pages file is their bytes, one
// after another. A set may build on another, its parent: a page that is
// flagged so is looked for there. Memory follows that chain for every page
// and says in which file, at which offset, it ends.
//
// The messages are those of go-criu. Numbers are little-endian.
//
// Everything is read with bounded memory, and what does not fit together is a
// DamagedError, never a panic. A Dir and a Memory never change and may be used by
// several goroutines; Readers, Writers and PageWriters belong to one each.
package imgfile
