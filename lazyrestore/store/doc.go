// Package store is where images live. A Dir reads an image that is a directory
// of files; a Staging writes one and puts it in place at once or not at all.
// The conformance suite that every image.Source passes is in storetest.
//
// An image is written beside its final place, in a directory .NAME.tmp-RANDOM
// of mode 0700, with files of mode 0600. Commit syncs the files and the
// directory, renames it, and syncs the directory above: after a crash at any
// point the image is there as a whole or not. While a Staging lives it holds a
// lock (flock) on its directory; what a killed one leaves behind has no lock,
// does no harm, and is removed by the next CreateDir for the same name.
package store
