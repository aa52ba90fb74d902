// Package pageserver ships the objects of images from one machine to another:
// a Server hands out ranges of them, over the protocol of package wire. It
// neither decodes nor checks what it sends, and knows no pages.
//
// # The server
//
// One goroutine reads each connection (conn.go). A read that somebody waits for
// and that is in the page cache is answered by that goroutine at once; one that
// is not, or a long one, by a goroutine of its own (request.go). Where a client
// asks for one page after another, it looks for the next request for a moment
// before it sleeps (lookout.go). Background reads of a connection are answered
// one after the other by one goroutine, in pieces (stream.go), a few of which
// are sent in each turn among all clients (turns.go), by threads of low priority
// (helpers_linux.go). On its way out a reply passes the connection's outlet
// (outlet.go), demand first.
//
// Objects are opened once for all clients, relative to the directory of their
// image, and held while one client has the image open (catalog.go, held.go).
//
// Locks, each taken while holding none but those before it: Server.mu,
// conn.mu, Catalog.mu, turns.mu, outlet.mu. None is held while something is
// read, written or waited for, but for Catalog.listing.
package pageserver
