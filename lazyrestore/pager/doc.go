// Package pager turns the faults of a process whose memory is missing into
// pages of an image.
//
// # What happens to a fault
//
//  1. A thread touches a missing page and waits in the kernel. The reader, one
//     locked thread for all address spaces that the pager serves, reads that
//     from the space's uffd (reader.go). It spins for a moment after the last
//     event before it sleeps, since being woken is most of what a fault costs,
//     and goes to the processor of a thread that faults again and again
//     (follow.go).
//  2. The layout of the space says which image address the page has: the
//     engine's mappings as events have changed them since (layout.go,
//     model.go). An address that has none is a page of zeros.
//  3. The index says which frame holds it (table.go). It comes by segments; one
//     that is not there yet is loaded for the first fault that needs it
//     (opening.go), at once if the source has it in memory; after a few of those
//     the rest is loaded too, by a thread that gives way. If the source has the
//     frame in memory, the reader fetches, checks, decodes and installs it at
//     once: the page that is waited for, then the rest of the chunk.
//  4. Else the fault joins the flight of that frame (demand.go): one fetch
//     for all who wait, by a worker that has patience (fetch.go, retries.go).
//  5. Meanwhile background workers (background.go) fetch everything else,
//     what lies near the latest faults first (order.go). While faults come
//     they only decode, and the reader installs what they offer when no fault
//     has come for a moment, else little of it (pace.go); a fault on what they
//     are at waits a moment for them. In quiet times they copy themselves, all
//     at once, and so they do for a thread that runs through memory (rows.go),
//     which waits for nothing else: then the reader sleeps.
//  6. When a space misses nothing any more, what it has lost sight of in
//     shared memory is brought, too (away_linux.go), and its uffd is closed, which
//     unregisters its ranges (review.go), its huge pages are rebuilt (collapse.go),
//     and at last the keeper is ended and Serve returns.
//
// # Events
//
// A process forks, moves, discards and unmaps memory while pages of it are
// missing. The kernel tells, and holds the thread until the event has been
// read. So a page that was fetched for a range must not be copied once an
// event that ends the range has been read: a check that the range is wanted
// and the copy happen inside a gate that the reader shuts to read (gate.go).
// Fetching and decoding happen outside.
//
// # Failing closed
//
// A page whose content is not known is never left to read as zeros. What
// cannot be had is tried again and then poisoned, so that touching it raises
// SIGBUS. The uffd is not closed before all of its memory is resident or
// poisoned, or the process gone, also not when Serve has to return early, and
// not when this process is killed: the keeper, a child that shares the
// descriptors, holds it then (keeper_linux.go). What a successor has to know
// is in shared memory, which the kernel writes the events to before they have
// any effect (state.go, journal.go).
//
// # Who may do what
//
// The reader alone reads events and changes models, with the gate shut. Who
// is inside the gate may read models and install; the reader needs no gate
// for that. Bits of pages done are set by anyone. The locks demand.mu and
// order.mu are held for moments and never together with one another or inside
// the gate; no I/O happens under either.
//
// Nothing here may run in the process that is served: a goroutine that waits
// for missing memory stops the world, and with it whoever would fill it.
package pager
