// Package convert makes an image of ours of a CRIU image set, and the set
// again of the image.
//
// The image holds all files of the set as objects, so that CRIU restores from
// its directory, but for logs and pid files, and what CRIU and daemons of ours leave in a set that they restore
// from (isOfARestore). What is different is memory: lazy pages are in the image's
// frames (imgfile.ImageAddr says where), its pages files hold only the others,
// and its pagemaps say of the lazy ones no longer that they are present. CRIU
// leaves such a set itself where it dumps lazily, and takes it with --lazy-pages.
//
// A set comes back to the byte. One that builds on others becomes one that
// stands alone, with the pages that were in those.
//
// Files that every restore needs are looked through (imgfile.Dir.Check), so that a set
// of which one was cut within a record is refused. CRIU's files have no checksums: a changed byte
// may pass, as it does with CRIU.
//
// Everything is streamed: what is held is a few MiB and a pagemap, whatever the
// size of the set.
package convert
