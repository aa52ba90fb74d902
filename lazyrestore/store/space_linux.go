package store

import (
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Space is how many bytes a new image at path may take: what the file system
// of the directory above has left for this user.
func Space(path string) (uint64, error) {
	dir := filepath.Dir(filepath.Clean(path))
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return st.Bavail * uint64(st.Frsize), nil
}
