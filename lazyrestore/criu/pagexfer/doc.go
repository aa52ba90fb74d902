// Package pagexfer is CRIU's page transfer protocol: what criu dump says to a
// page server (--page-server), and a lazy-pages daemon to one that serves
// pages (page-server --lazy-pages). It is pure: it reads and writes what it is
// given, and neither opens connections nor files.
//
// The protocol has no hello and no version. A side that has something to say
// sends a header, a struct in the machine's byte order, that may be followed by
// pages. There are two forms of it, the Dialects, which do not understand each
// other. A Decoder, on the side that is spoken to first, tells them apart by
// the first header (Detect); a client has to be told.
//
//	criu dump               page server
//	OPEN2 id           ──▶
//	                   ◀──  1 byte: there is a parent image
//	ADD_F|PRESENT      ──▶  pages follow
//	ADD_F|PARENT       ──▶  the parent image has them; nothing follows
//	CLOSE              ──▶
//	                   ◀──  int32, 0; then the client closes
//
//	lazy-pages              page server --lazy-pages
//	GET pid addr n     ──▶
//	                   ◀──  ADD_F|PRESENT pid addr m, 1 <= m <= n; m pages follow
//
// Replies to GET come in the order of the requests. There is no reply that
// means an error, or zeros: a server that has not got a page closes the
// connection.
//
// Everything that a peer says is checked before it is used: lengths against
// the address space, replies against the requests. Errors about what a peer
// said wrap ErrProtocol.
package pagexfer
