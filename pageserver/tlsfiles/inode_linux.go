package tlsfiles

import (
	"io/fs"
	"syscall"
)

// inode is the number of a file: another one at the same path has another.
func inode(fi fs.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}
