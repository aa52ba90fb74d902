package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// An output is a small file that appears whole or not at all. It is opened before the
// work, so that a path that cannot be written to is found then. What is there and is no
// regular file, as /dev/null, /dev/stdout or a FIFO, is written to where it is: a file in its place would
// take it away from everybody.
type output struct {
	path string
	file *os.File
	temp bool // file is beside path, and is to get its name
}

// newOutput opens a file beside path, or path; without a path it gives nil, all of
// whose methods do nothing.
func newOutput(path string) (*output, error) {
	if path == "" {
		return nil, nil
	}
	o := &output{path: path}
	info, err := os.Lstat(path)
	if err == nil && !info.Mode().IsRegular() {
		// A FIFO that nobody reads is an error, as it waits for no reader.
		o.file, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|unix.O_NOCTTY|unix.O_NONBLOCK, 0o644)
	} else {
		o.temp = true
		o.file, err = os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	}
	if err != nil {
		var about *fs.PathError
		if errors.As(err, &about) {
			err = about.Err // the path is that of path, or one that nobody has named
		}
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return o, nil
}

// commit writes the content and gives the file its name.
func (o *output) commit(content []byte) error {
	if o == nil || o.file == nil {
		return nil
	}
	defer o.discard()
	if err := o.write(content); err != nil {
		return fmt.Errorf("write %s: %w", o.path, err)
	}
	return nil
}

func (o *output) write(content []byte) error {
	if !o.temp {
		if info, err := o.file.Stat(); err == nil && info.Mode().IsRegular() { // at the end of a symbolic link
			if err := o.file.Truncate(0); err != nil {
				return err
			}
		}
		_, err := o.file.Write(content)
		return err
	}
	if _, err := o.file.Write(content); err != nil {
		return err
	}
	if err := o.file.Chmod(0o644); err != nil {
		return err
	}
	return os.Rename(o.file.Name(), o.path)
}

// discard lets go of the file, and removes it unless it was committed.
func (o *output) discard() {
	if o == nil || o.file == nil {
		return
	}
	if o.temp {
		os.Remove(o.file.Name())
	}
	o.file.Close()
	o.file = nil
}
