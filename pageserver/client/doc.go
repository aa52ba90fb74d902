// Package client reads images from page servers: a Client is an image.Source,
// for a pager that neither knows nor notices that a network lies between.
//
// # How a restore starts
//
// Open sends HELLO, OPEN and the first reads in one go, without waiting for an
// answer, and returns when the server has said what the image holds. What the
// restore asks for next (manifest, process.bin, eager.raw, the index) is on its
// way by then (early.go). So two round trips after the start, that of the
// connection and one more, the process is being built.
//
// # What happens to a read
//
//  1. ReadRange cuts it into requests that a server takes (client.go), or
//     finds it among what came early or was read ahead (ahead.go).
//  2. The lane of the read, demand or background, sends them over its
//     connection (lane.go). Each lane has a connection of its own: what is on
//     its way in the network cannot be overtaken.
//  3. The connection's reader puts payloads where they belong (conn.go). Of the
//     background it is woken for much at a time (intake_unsafe_linux.go).
//
// # When a server is lost
//
// A connection that ends, that is silent although it should answer, gives next to nothing
// though there is another server (crawl.go), or says what makes no sense is closed. Its requests go to the next one as far
// as they are not answered, on the same server or on another (servers.go, connect.go):
// all of them can be asked twice. A server that does not answer is not waited for where another one does. A server that has another image under the
// name by now is asked for the one that was opened, and has that for as long as
// some connection does; else it is left alone. Only when no server can be had does
// a read fail, with an *UnavailableError that names each server and what is wrong
// with it; whoever reads tries again, and the servers are asked no more often than
// their growing pauses allow.
//
// A server knows nothing about what is right in an image. Bytes that turn out
// to be damaged are told to Reject: the range is asked of another server, and
// the one that gave them is the last to be asked again (reject.go).
//
// # Locks
//
// lane.mu is taken before servers.mu and Client.mu; early.mu, ahead.mu and rejected.mu stand
// alone; buffers.mu and intake.mu are taken last. No I/O happens under any of
// them. A request belongs to its lane until it is done, and its buffer to the
// reader of the connection that it is on: a reader that is given up closes that
// connection before it lets go.
package client
