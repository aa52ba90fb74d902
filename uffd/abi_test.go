package uffd_test

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/uffd"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// The table of TestABI is what the C compiler makes of this machine's header, as
// far as that one goes, and every line of the header's is in the table.
func TestABIHeader(t *testing.T) {
	uffdtest.Need(t, "cmd:gcc")
	exe := filepath.Join(t.TempDir(), "abi")
	if out, err := exec.Command("gcc", "-Wall", "-o", exe, "testdata/abi.c").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	out, err := exec.Command(exe).Output()
	if err != nil {
		t.Fatal(err)
	}
	table := uffd.ABITable()
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	if len(lines) < 50 {
		t.Fatalf("only %d lines from the header", len(lines))
	}
	for _, line := range lines {
		name, value, _ := strings.Cut(string(line), " ")
		header, err := strconv.ParseUint(value, 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		if want, ok := table[name]; !ok || want != header {
			t.Errorf("%s is %#x in the header, %#x in our table (there: %v)", name, header, want, ok)
		}
	}
}
