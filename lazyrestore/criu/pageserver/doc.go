// Package pageserver takes the place of CRIU's page server: Receive takes the
// memory of a dump (criu dump --page-server), Serve gives pages to lazy-pages
// daemons (criu page-server --lazy-pages). The wire is pagexfer's.
//
// What is received goes to a Target: Files makes an image set as CRIU's own
// page server does, Image an image of ours, of the same kind as convert.Import
// makes. Either is complete, and on the disk, before the dump hears that it
// is, and so before the dumped process ends.
// A criu dump that fails may end its transfer as a good one does, so that a target
// may be complete that is of no use: its exit status tells.
// Files of other dumps in a directory stay, also of such as come at the same time: a
// dump replaces the memory that it has itself, and nothing else (numbers.go).
//
//	conn ─▶ pagexfer.Decoder ─▶ session ─▶ Target: Files, Image
//	conn ─▶ pagexfer.Decoder ─▶ GET ─▶ pageset.Reader ─▶ conn
//
// A server trusts nobody: whatever a peer says, memory and descriptors stay
// bounded by the number of clients and the images, the others are served, and
// nothing that was there is lost. A client that asks for a page or a task that
// the set has not got loses its connection, for the protocol has no other
// answer.
package pageserver
