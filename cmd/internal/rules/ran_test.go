package rules

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// logEnv names the output of go test -v ./..., which CI hands on.
const logEnv = "LAZYRESTORE_TEST_LOG"

var passed = regexp.MustCompile(`(?m)^ *--- PASS: (\S+) \(`)

// TestSupportTestsRan holds each row of SUPPORT.md to a test that has run and
// passed, under the name that the row has, its subtest's too: one that was
// renamed, or skipped, shows nothing. Without a log there is nothing to hold.
func TestSupportTestsRan(t *testing.T) {
	log := os.Getenv(logEnv)
	if log == "" {
		return
	}
	output, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	ran := make(map[string]bool)
	for _, m := range passed.FindAllSubmatch(output, -1) {
		ran[string(m[1])] = true
	}
	text, err := os.ReadFile(filepath.Join(root(t), "SUPPORT.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for n, line := range strings.Split(string(text), "\n") {
		if !strings.HasPrefix(line, "|") {
			continue
		}
		for _, m := range testName.FindAllStringSubmatch(line, -1) {
			named++
			if name := strings.ReplaceAll(m[1]+m[2], " ", "_"); !ran[name] {
				t.Errorf("SUPPORT.md:%d names %s, which has not passed", n+1, name)
			}
		}
	}
	if named == 0 {
		t.Error("SUPPORT.md names no tests")
	}
}
