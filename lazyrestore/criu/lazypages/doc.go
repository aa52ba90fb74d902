// Package lazypages stands in for criu lazy-pages: criu restore --lazy-pages
// hands it the userfaultfd of every task of the tree that it builds, and gets
// their memory filled.
//
// # The way of a page
//
//  1. Open reads the image set (set.go): which tasks there are, and for each
//     where its lazy pages are: in a pages file of the set, or of one that it
//     builds on, or with a page server. All of them together are one image for
//     the pager, in whose address space the pages files lie side by side
//     (imgfile.ImageAddr); each task is mappings of its memory to that. Pages
//     come from the files themselves (files.go), from a page server
//     (remote.go), or from an image of ours that was made of the set.
//     All of that, and what the pager needs for each task, is done before CRIU
//     is let in: what is left to do while it builds the tree costs it time.
//  2. Serve waits for the connection of criu restore (socket.go) and takes the
//     tasks from it, each a pid and a userfaultfd. The pager serves a task
//     from the moment on at which it has come: CRIU's restorer may touch lazy
//     memory before the last task is there. Pages that nobody waits for come
//     only after CRIU's word that the tree is built, since until then memory
//     is still being moved to its place and registered.
//  3. From there on it is the pager's business, forks and all, until every
//     page is resident or every process gone.
//
// # Dying
//
// CRIU's tasks close their own userfaultfds: the daemon's are the last, and
// when CRIU's own daemon dies its tasks read zeros. Here a keeper holds them.
// A file in the work directory (resume.go) names it, and Resume goes on from
// there, in the middle of the setting-up too.
//
// A Daemon's methods are called from one goroutine.
package lazypages
