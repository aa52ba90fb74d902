package store_test

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store/storetest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("STORE_TEST_WRITER"); path != "" {
		writeAndWait(path)
		return
	}
	os.Exit(m.Run())
}

// writeAndWait is a child that is killed in the middle of writing an image.
func writeAndWait(path string) {
	s, err := store.CreateDir(path)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	f, err := s.Create("pages.lz4")
	if err == nil {
		_, err = f.Write([]byte("half of it"))
	}
	fmt.Println("written", err)
	select {}
}

// names is what a directory holds, sorted.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var ns []string
	for _, e := range entries {
		ns = append(ns, e.Name())
	}
	return ns
}

func wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	if got := names(t, dir); !slices.Equal(got, want) {
		t.Errorf("%s holds %q, want %q", filepath.Base(dir), got, want)
	}
}

func TestCommit(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(path string) error
	}{
		{"free", func(string) error { return nil }},
		{"empty directory", func(path string) error { return os.Mkdir(path, 0o755) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "img")
			if err := tt.prepare(path); err != nil {
				t.Fatal(err)
			}
			write(t, path, storetest.Objects{"a.bin": []byte("a"), "b.bin": []byte("b")})
			wantNames(t, dir, "img")
			wantNames(t, path, "a.bin", "b.bin")
			for name, mode := range map[string]fs.FileMode{".": fs.ModeDir | 0o700, "a.bin": 0o600} {
				st, err := os.Stat(filepath.Join(path, name))
				if err != nil || st.Mode() != mode {
					t.Errorf("mode of %s: %v, %v, want %v", name, st.Mode(), err, mode)
				}
			}
		})
	}
}

func TestTaken(t *testing.T) {
	for _, tt := range []struct {
		name string
		take func(path string) error
	}{
		{"file", func(path string) error { return os.WriteFile(path, nil, 0o600) }},
		{"directory", func(path string) error { return os.MkdirAll(filepath.Join(path, "x"), 0o700) }},
		{"link", func(path string) error { return os.Symlink(filepath.Dir(path), path) }},
		{"image", func(path string) error {
			return errors.Join(os.MkdirAll(path, 0o700), os.WriteFile(filepath.Join(path, "manifest.json"), nil, 0o600))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "img")
			late, err := store.CreateDir(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := tt.take(path); err != nil {
				t.Fatal(err)
			}
			if _, err := store.CreateDir(path); !errors.Is(err, store.ErrNotEmpty) || !strings.Contains(err.Error(), path) {
				t.Errorf("CreateDir: %v", err)
			} else if removable := strings.Contains(err.Error(), "remove"); removable != (tt.name == "image") {
				t.Errorf("the advice is: %v", err)
			}
			// Taken only after the writing began: Commit finds out, and nothing stays.
			if err := late.Commit(); !errors.Is(err, store.ErrNotEmpty) {
				t.Errorf("Commit: %v", err)
			}
			wantNames(t, dir, "img")
		})
	}
	if _, err := store.CreateDir(filepath.Join(t.TempDir(), "no", "img")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("CreateDir in a missing directory: %v", err)
	}
}

func TestAbort(t *testing.T) {
	dir := t.TempDir()
	s, err := store.CreateDir(filepath.Join(dir, "img"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create("a.bin"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create("a.bin"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create twice: %v", err)
	}
	if _, err := s.Create("../a.bin"); err == nil {
		t.Error("Create outside the image gives no error")
	}
	if err := s.Abort(); err != nil {
		t.Error(err)
	}
	if err := s.Abort(); err != nil {
		t.Errorf("second Abort: %v", err)
	}
	if err := s.Commit(); err == nil {
		t.Error("Commit after Abort gives no error")
	}
	wantNames(t, dir)
}

// What cannot be removed is told of once, however many files it is.
func TestAbortStuck(t *testing.T) {
	dir := t.TempDir()
	s, err := store.CreateDir(filepath.Join(dir, "img"))
	if err != nil {
		t.Fatal(err)
	}
	tmp, err := filepath.Glob(filepath.Join(dir, ".img.tmp-*"))
	if err != nil || len(tmp) != 1 {
		t.Fatal(tmp, err)
	}
	for _, name := range []string{"a", "b", "c"} {
		if err := os.Mkdir(filepath.Join(tmp[0], name), 0o700); err != nil { // to be removed by another call
			t.Fatal(err)
		}
	}
	err = s.Abort()
	if err == nil || strings.Count(err.Error(), "is a directory") != 1 || !strings.Contains(err.Error(), filepath.Base(tmp[0])) {
		t.Errorf("Abort: %v", err)
	}
}

// An object that nobody has closed may be half written.
func TestCommitUnclosed(t *testing.T) {
	dir := t.TempDir()
	s, err := store.CreateDir(filepath.Join(dir, "img"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create("a.bin"); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(); err == nil || !strings.Contains(err.Error(), "a.bin") {
		t.Errorf("Commit: %v", err)
	}
	wantNames(t, dir)
}

// A killed writer leaves nothing under the final name; the next one for the
// same name removes what it left, but not what a live writer has.
func TestKilledWriter(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "img")
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "STORE_TEST_WRITER="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "written <nil>\n" {
		t.Fatalf("child: %q, %v", line, err)
	}
	left := names(t, dir)
	if len(left) != 1 || !strings.HasPrefix(left[0], ".img.tmp-") {
		t.Fatalf("while a child writes: %q", left)
	}
	alive, err := store.CreateDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); len(got) != 2 || !slices.Contains(got, left[0]) {
		t.Errorf("a live writer's directory is gone: %q", got)
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	other, err := store.CreateDir(filepath.Join(dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); !slices.Contains(got, left[0]) {
		t.Errorf("a writer of another name removed %s: %q", left[0], got)
	}
	write(t, path, storetest.Objects{"a.bin": []byte("a")})
	if got := names(t, dir); slices.Contains(got, left[0]) {
		t.Errorf("%s is still there: %q", left[0], got)
	}
	if err := errors.Join(alive.Abort(), other.Abort()); err != nil {
		t.Error(err)
	}
	wantNames(t, dir, "img")
}

// Writers that begin at once do not remove each other's directories.
func TestCreateDirRace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "img")
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 50 {
				s, err := store.CreateDir(path)
				if err != nil {
					t.Errorf("CreateDir: %v", err)
					return
				}
				f, err := s.Create("a.bin")
				if err != nil {
					t.Errorf("the directory of a live writer is gone: %v", err)
					return
				}
				if err := errors.Join(f.Close(), s.Abort()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	wantNames(t, dir)
}

// Of writers that end at once one wins, and the others leave nothing.
func TestCommitRace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "img")
	const n = 8
	errs := make([]error, n)
	var ready, wg sync.WaitGroup
	ready.Add(n)
	for i := range n {
		wg.Go(func() {
			s, err := store.CreateDir(path)
			ready.Done()
			if err != nil {
				t.Error(err)
				return
			}
			f, err := s.Create("a.bin")
			if err != nil {
				t.Error(err)
				return
			}
			ready.Wait()
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			errs[i] = s.Commit()
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, store.ErrNotEmpty) {
			t.Errorf("Commit: %v", err)
		}
	}
	if won != 1 {
		t.Errorf("%d writers won", won)
	}
	wantNames(t, dir, "img")
}

// No symbolic link, pipe or directory is taken for an object.
func TestNotAFile(t *testing.T) {
	path := t.TempDir()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"link":   os.Symlink(secret, filepath.Join(path, "link")),
		"pipe":   syscall.Mkfifo(filepath.Join(path, "pipe"), 0o600),
		"folder": os.Mkdir(filepath.Join(path, "folder"), 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
		d, err := store.OpenDir(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.ReadRange(t.Context(), name, make([]byte, 1), 0, 0); err == nil {
			t.Errorf("%s is read", name)
		}
		if _, err := d.Size(t.Context(), name); err == nil {
			t.Errorf("%s has a size", name)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What is open stays readable whatever happens to its name.
func TestRemovedWhileOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "img")
	write(t, path, storetest.Objects{"a.bin": []byte("abc")})
	d, err := store.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.Size(t.Context(), "a.bin"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 3)
	if err := d.ReadRange(t.Context(), "a.bin", p, 0, 0); err != nil || string(p) != "abc" {
		t.Errorf("read: %q, %v", p, err)
	}
}

// A full file system is a clear error, and leaves nothing behind.
func TestFull(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "img")
	// The limit of a file's size stands in for a full disk: the same path
	// through the code, without the privilege to mount one.
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	s, err := store.CreateDir(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.Create("pages.raw")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 100_000, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	n, err := f.Write(make([]byte, 150_000))
	if rerr := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); rerr != nil {
		t.Fatal(rerr)
	}
	if n != 100_000 || !errors.Is(err, syscall.EFBIG) || !strings.Contains(err.Error(), filepath.Join(path, "pages.raw")) || !strings.Contains(err.Error(), "100000 bytes") {
		t.Errorf("Write = %d, %v", n, err)
	}
	if err := s.Abort(); err != nil {
		t.Error(err)
	}
	wantNames(t, dir)
}

func TestSpace(t *testing.T) {
	if n, err := store.Space(filepath.Join(t.TempDir(), "img")); err != nil || n == 0 {
		t.Errorf("Space = %d, %v", n, err)
	}
	if _, err := store.Space(filepath.Join(t.TempDir(), "no", "img")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Space in a missing directory: %v", err)
	}
}
