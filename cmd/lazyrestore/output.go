package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// An output is a small file that appears whole or not at all. It is opened
// before the work, so that a path that cannot be written to is found then.
type output struct {
	path string
	temp *os.File
}

// newOutput opens a file beside path; without a path it gives nil, all of
// whose methods do nothing.
func newOutput(path string) (*output, error) {
	if path == "" {
		return nil, nil
	}
	temp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return &output{path, temp}, nil
}

// commit writes the content and gives the file its name.
func (o *output) commit(content []byte) error {
	if o == nil || o.temp == nil {
		return nil
	}
	defer o.discard()
	if _, err := o.temp.Write(content); err != nil {
		return fmt.Errorf("write %s: %w", o.path, err)
	}
	if err := o.temp.Chmod(0o644); err != nil {
		return fmt.Errorf("write %s: %w", o.path, err)
	}
	if err := os.Rename(o.temp.Name(), o.path); err != nil {
		return fmt.Errorf("write %s: %w", o.path, err)
	}
	return nil
}

// discard lets go of the file, and removes it unless it was committed.
func (o *output) discard() {
	if o == nil || o.temp == nil {
		return
	}
	os.Remove(o.temp.Name())
	o.temp.Close()
	o.temp = nil
}
