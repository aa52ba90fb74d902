// Package criu is where the packages are that have CRIU rebuild processes and
// lazyrestore their memory. It has no code of its own.
//
//   - imgfile reads and writes CRIU's image files: tasks, VMAs, pagemaps, chains
//     of sets.
//   - lazypages takes the place of criu lazy-pages: it fills what
//     criu restore --lazy-pages builds.
//   - pageserver takes the place of criu page-server: it receives dumps, and
//     gives pages to lazy-pages daemons.
//   - convert makes an image of ours of a set, and the set again of the image.
//   - pageset is the pages of a set, from its files or such an image.
//   - pagexfer is the protocol of page servers, in both dialects; pagetls its
//     TLS.
//
// The commands lazyrestore lazy-pages, page-server, import and export are flags
// around these; the examples show what they call.
package criu
