package main

import (
	"errors"
	"flag"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/imports.txt anew")

func exitCodeText(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return strconv.Itoa(exit.ExitCode())
	}
	return err.Error()
}

// TestImports holds the packages that the command links to a list that was
// agreed on: each is initialised whatever the verb, and start-up is a good part
// of the time to the first instruction. Packages internal to Go are left out.
func TestImports(t *testing.T) {
	const file = "testdata/imports.txt"
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	linked := slices.DeleteFunc(strings.Fields(string(out)), func(path string) bool {
		first, _, _ := strings.Cut(path, "/")
		standard := !strings.Contains(first, ".")
		return standard && slices.Contains(strings.Split(path, "/"), "internal") || first == "vendor"
	})
	slices.Sort(linked)
	got := strings.Join(linked, "\n") + "\n"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("the command links other packages than %s lists; look at what they cost, then run make imports (-want +got):\n%s", file, diff)
	}
}
