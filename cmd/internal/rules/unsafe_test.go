package rules

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// goFiles calls visit for each Go file of the tree.
func goFiles(t *testing.T, visit func(path, name string)) {
	t.Helper()
	dir := root(t)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == "out" || len(d.Name()) > 1 && d.Name()[0] == '.') {
			return filepath.SkipDir
		}
		if filepath.Ext(path) == ".go" {
			name, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			visit(path, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestUnsafeIsInFilesOfThatName(t *testing.T) {
	goFiles(t, func(path, name string) {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			t.Error(err)
			return
		}
		base := strings.TrimSuffix(strings.TrimSuffix(name, ".go"), "_test")
		for _, i := range f.Imports {
			if i.Path.Value == `"unsafe"` && !strings.Contains(filepath.Base(base), "_unsafe_linux") {
				t.Errorf("%s imports unsafe: it belongs into a file named *_unsafe_linux.go", name)
			}
		}
	})
}

func TestSkipsAreDecidedInOnePlace(t *testing.T) {
	goFiles(t, func(path, name string) {
		if strings.HasPrefix(name, "uffd/uffdtest/") || strings.HasPrefix(name, "cmd/internal/rules/") {
			return
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
			return
		}
		for n, line := range strings.Split(string(text), "\n") {
			for _, call := range []string{".Skip(", ".Skipf(", ".SkipNow("} {
				if strings.Contains(line, call) {
					t.Errorf("%s:%d skips a test: uffdtest.Need decides about that", name, n+1)
				}
			}
		}
	})
}

// longest is how many lines a file has at most; one idea fits in them.
const longest = 520

func TestNoFileIsTooLong(t *testing.T) {
	goFiles(t, func(path, name string) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
			return
		}
		if n := strings.Count(string(text), "\n"); n > longest {
			t.Errorf("%s has %d lines, at most %d are allowed: split it", name, n, longest)
		}
	})
}
