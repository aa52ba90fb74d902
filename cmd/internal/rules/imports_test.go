package rules

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/lazyrestore/lazyrestore/"

// mayImport says which packages of ours each package may import. The order is
// the direction in which things depend on each other, and it does not turn.
// A name that ends in /... stands for all below.
var mayImport = []struct {
	name    string
	imports []string
}{
	{"lazyrestore/page", nil},
	{"uffd", nil},
	{"lazyrestore/trace", nil},
	{"lazyrestore/thread", nil},
	{"pageserver/wire", nil},
	{"lazyrestore/chunk", []string{"lazyrestore/page"}},
	{"lazyrestore/proc", []string{"lazyrestore/page"}},
	{"lazyrestore/image", []string{"lazyrestore/chunk", "lazyrestore/page"}},
	{"lazyrestore/store", []string{"lazyrestore/image", "lazyrestore/thread"}},
	{"pageserver/peerlog", nil},
	{"pageserver", []string{"lazyrestore/image", "pageserver/peerlog", "pageserver/wire"}},
	{"pageserver/tlsfiles", nil},
	{"pageserver/client", []string{"lazyrestore/image", "pageserver/wire"}},
	{"lazyrestore/pager", []string{"lazyrestore/image", "lazyrestore/page", "lazyrestore/proc", "lazyrestore/thread", "lazyrestore/trace", "uffd"}},
	{"lazyrestore/native", []string{"lazyrestore/image", "lazyrestore/page", "lazyrestore/proc", "lazyrestore/thread", "lazyrestore/trace", "uffd"}},
	{"lazyrestore/criu/...", []string{"lazyrestore/criu/...", "lazyrestore/image", "lazyrestore/page", "lazyrestore/pager", "lazyrestore/thread", "pageserver/peerlog", "uffd"}},
	{"lazyrestore", []string{
		"lazyrestore/native", "lazyrestore/pager", "lazyrestore/proc", "lazyrestore/store", "lazyrestore/thread", "lazyrestore/trace", "pageserver/client",
		"lazyrestore/image", "lazyrestore/chunk", "lazyrestore/page",
	}},
	{"bench/...", []string{"..."}},
	{"cmd/...", []string{"..."}},
	// Helpers of tests, which nothing else imports.
	{"uffd/uffdtest", []string{"uffd"}},
	{"pageserver/proxytest", nil},
	{"pageserver/tlsfiles/tlstest", []string{"pageserver/tlsfiles"}},
	{"lazyrestore/criu/criutest", []string{"uffd/uffdtest"}},
	{"lazyrestore/image/imagetest", []string{"lazyrestore/image", "lazyrestore/chunk", "lazyrestore/page"}},
	{"lazyrestore/store/storetest", []string{"lazyrestore/image", "lazyrestore/chunk", "lazyrestore/page"}},
}

// pure packages make no system calls: they also vet elsewhere.
var pure = []string{"lazyrestore/page", "lazyrestore/chunk", "lazyrestore/image", "pageserver/wire", "lazyrestore/criu/pagexfer"}

// impure are packages that a pure one does not import.
var impure = []string{"syscall", "golang.org/x/sys/unix", "net", "os/exec", "os/signal", "unsafe"}

// A listed is a package as go list has it.
type listed struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

// packages lists all packages of ours.
func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = root(t)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// root is the directory of go.mod.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", "..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// covers reports whether a name of the table stands for the package.
func covers(name, pkg string) bool {
	if prefix, ok := strings.CutSuffix(name, "..."); ok {
		return strings.HasPrefix(pkg+"/", prefix)
	}
	return name == pkg
}

// testHelper reports whether only tests may import the package.
func testHelper(pkg string) bool { return strings.HasSuffix(pkg, "test") }

// allowed reports whether from may import to.
func allowed(from, to string) (ok, known bool) {
	for _, rule := range mayImport {
		if !covers(rule.name, from) {
			continue
		}
		known = true
		if slices.ContainsFunc(rule.imports, func(name string) bool { return covers(name, to) }) {
			return true, true
		}
	}
	return false, known
}

func TestImportsFollowTheArchitecture(t *testing.T) {
	for _, p := range packages(t) {
		from, ours := strings.CutPrefix(p.ImportPath, module)
		if !ours {
			continue
		}
		if _, known := allowed(from, ""); !known {
			t.Errorf("%s is in no rule: say in mayImport, and in ARCHITECTURE.md, what it may import", from)
		}
		for _, path := range p.Imports {
			to, ours := strings.CutPrefix(path, module)
			if !ours {
				continue
			}
			if testHelper(to) && !testHelper(from) {
				t.Errorf("%s imports %s, which is for tests", from, to)
			} else if ok, _ := allowed(from, to); !ok {
				t.Errorf("%s imports %s, which is not for it", from, to)
			}
		}
	}
}

func TestPurePackagesMakeNoSystemCalls(t *testing.T) {
	seen := 0
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if !slices.Contains(pure, name) {
			continue
		}
		seen++
		for _, path := range p.Imports {
			if slices.Contains(impure, path) {
				t.Errorf("%s imports %s: it has to be pure", name, path)
			}
		}
	}
	if seen == 0 {
		t.Error("no pure package was seen")
	}
}

func TestOnlyCommandsKnowFlags(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if covers("cmd/...", name) || covers("bench/...", name) || testHelper(name) {
			continue
		}
		for _, path := range p.Imports {
			if path == "flag" || strings.HasPrefix(path, "github.com/spf13/") {
				t.Errorf("%s imports %s: options are structs, only commands know flags", name, path)
			}
		}
	}
}
