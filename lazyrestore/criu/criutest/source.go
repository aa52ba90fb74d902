package criutest

import (
	_ "embed"
	"os"
	"path/filepath"
)

//go:embed testdata/subject.c
var subject []byte

// sourceFile is testdata/subject.c, wherever the test runs.
func sourceFile() (string, error) {
	path := filepath.Join(programDir, "subject.c")
	return path, os.WriteFile(path, subject, 0o600)
}
