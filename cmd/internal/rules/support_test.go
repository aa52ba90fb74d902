package rules

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// testName is a test in a cell of a table of SUPPORT.md: `TestName` or
// `TestName/subtest`.
var testName = regexp.MustCompile("`(Test[A-Za-z0-9_]*)(/[^`]*)?`")

// TestSupportNamesTests holds each row of SUPPORT.md to a test that there is.
// A row is one whose status says preserved, refused or eager.
func TestSupportNamesTests(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root(t), "SUPPORT.md"))
	if errors.Is(err, fs.ErrNotExist) {
		t.Fatal("there is no SUPPORT.md")
	} else if err != nil {
		t.Fatal(err)
	}
	tests := testFunctions(t)
	for n, line := range strings.Split(string(text), "\n") {
		if !supportRow(line) {
			continue
		}
		named := testName.FindAllStringSubmatch(line, -1)
		if len(named) == 0 {
			t.Errorf("SUPPORT.md:%d names no test: %s", n+1, line)
		}
		for _, m := range named {
			if !tests[m[1]] {
				t.Errorf("SUPPORT.md:%d names %s, which there is not", n+1, m[1])
			}
		}
	}
}

// supportRow reports whether a line is a row about a kind of state.
func supportRow(line string) bool {
	if !strings.HasPrefix(line, "|") {
		return false
	}
	for cell := range strings.SplitSeq(line, "|") {
		word, _, _ := strings.Cut(strings.Trim(cell, " *_"), " ")
		switch strings.ToLower(strings.Trim(word, ",:;.")) {
		case "preserved", "refused", "eager", "lazy":
			return true
		}
	}
	return false
}

var testFunction = regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9_]*)\(`)

// testFunctions are the names of all test functions of the tree.
func testFunctions(t *testing.T) map[string]bool {
	t.Helper()
	names := make(map[string]bool)
	goFiles(t, func(path, name string) {
		if !strings.HasSuffix(name, "_test.go") {
			return
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
			return
		}
		for _, m := range testFunction.FindAllSubmatch(text, -1) {
			names[string(m[1])] = true
		}
	})
	return names
}
