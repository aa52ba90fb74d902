package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/convert"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/criutest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/lazypages"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
)

// roleEnv makes this test binary the command, or a lazy-pages daemon.
const roleEnv = "LAZYRESTORE_IMPORT"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "import":
		code := verb.External(importVerb, os.Args[1:], os.Stdout, os.Stderr)
		if _, peak, ok := strings.Cut(readFile("/proc/self/status"), "VmHWM:"); ok {
			fmt.Fprintln(os.Stderr, "peak:", strings.Fields(peak)[0])
		}
		os.Exit(code)
	case "lazy-pages":
		if err := lazyPages(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(criutest.Main(m))
}

func readFile(name string) string {
	text, _ := os.ReadFile(name) // an empty one lacks what is looked for
	return string(text)
}

// lazyPages serves the tasks of an image.
func lazyPages(dir string) error {
	src, err := store.OpenDir(dir)
	if err != nil {
		return err
	}
	defer src.Close()
	im, err := image.Open(context.Background(), src, image.OpenOptions{})
	if err != nil {
		return err
	}
	_, err = lazypages.Serve(context.Background(), lazypages.Options{Images: dir, Image: im, Ready: func() error {
		_, err := os.Stdout.Write([]byte{0})
		return err
	}})
	return err
}

// role is a command that is this test binary.
func role(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), roleEnv+"="+name)
	return cmd
}

// daemon starts a lazy-pages daemon; the function that it gives waits for its
// end.
func daemon(t *testing.T, dir string) (wait func()) {
	t.Helper()
	cmd := role(t, "lazy-pages", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	cmd.Stderr = &text
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if n, err := out.Read(make([]byte, 2)); n != 1 || err != nil {
		t.Fatalf("daemon: %d bytes, %v; %s", n, err, text.Bytes())
	}
	return func() {
		t.Helper()
		timer := time.AfterFunc(criutest.Patience, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		if err := cmd.Wait(); err != nil {
			t.Fatalf("daemon: %v; %s", err, text.Bytes())
		}
	}
}

// convertSet runs the verb and gives what it prints.
func convertSet(t *testing.T, args ...string) (res result, code int, said string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = verb.External(importVerb, append([]string{"--json"}, args...), &out, &errs)
	if err := json.Unmarshal(out.Bytes(), &res); err != nil {
		t.Fatalf("%v: %s %s", err, out.Bytes(), errs.Bytes())
	}
	return res, code, errs.String()
}

// CRIU restores from an import, whose lazy pages come from compressed chunks;
// and from what is exported of it, which is what it was, without help.
func TestRestoreFromImport(t *testing.T) {
	criutest.Need(t)
	for _, c := range []struct {
		scene, codec string
	}{{"plain", "lz4"}, {"plain", "none"}, {"threads", "s2"}, {"tree", "zstd"}, {"changes", "lz4"}} {
		t.Run(c.scene+" "+c.codec, func(t *testing.T) {
			top := t.TempDir()
			set, img, back := filepath.Join(top, "set"), filepath.Join(top, "image"), filepath.Join(top, "back")
			if err := os.Mkdir(set, 0o700); err != nil {
				t.Fatal(err)
			}
			subject := criutest.Start(t, c.scene, 16)
			subject.Dump(t, set)
			if res, code, said := convertSet(t, "--codec", c.codec, set, img); code != 0 || res.Digest == "" || res.Memory == 0 {
				t.Fatalf("import: exit code %d, %+v; %s", code, res, said)
			}
			if _, err := lazyrestore.Restore(context.Background(), img, lazyrestore.RestoreOptions{}); !errors.As(err, new(*lazyrestore.RefusedError)) {
				t.Errorf("our own engine: %v", err)
			}
			export(t, img, back)
			if err := os.Remove(filepath.Join(set, "dump.log")); err != nil { // which is not in the image
				t.Fatal(err)
			}
			compare(t, set, back)
			wait := daemon(t, img)
			subject.Restore(t, img, "--lazy-pages")
			subject.Tell(t, "go")
			subject.Wait(t)
			wait()
		})
	}
}

func export(t *testing.T, img, to string) {
	t.Helper()
	src, err := store.OpenDir(img)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	im, err := image.Open(context.Background(), src, image.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	staging, err := store.CreateDir(to)
	if err != nil {
		t.Fatal(err)
	}
	if err := convert.Export(context.Background(), im, staging); err != nil {
		t.Fatal(err)
	}
	if err := staging.Commit(); err != nil {
		t.Fatal(err)
	}
}

// compare compares the files of two directories.
func compare(t *testing.T, want, got string) {
	t.Helper()
	names := map[string]int{}
	for _, dir := range []string{want, got} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names[e.Name()]++
		}
	}
	for name, n := range names {
		if n != 2 {
			t.Errorf("%s is in one of them only", name)
			continue
		}
		a, errA := os.ReadFile(filepath.Join(want, name))
		b, errB := os.ReadFile(filepath.Join(got, name))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%s is not what it was: %v %v", name, errA, errB)
		}
	}
}

// raceEnabled is set where the race detector, which takes memory of its own, is
// built in.
var raceEnabled bool

// The memory of an import does not grow with the set.
func TestImportBoundedMemory(t *testing.T) {
	const size = 1 << 30
	top := t.TempDir()
	set := filepath.Join(top, "set")
	if err := os.Mkdir(set, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := imgfile.Open(set)
	if err != nil {
		t.Fatal(err)
	}
	w, err := d.CreateMemory(imgfile.OfTask(7), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add(imgfile.Entry{Range: page.RangeOf(0x10000, size), Flags: imgfile.Present | imgfile.Lazy}); err != nil {
		t.Fatal(err)
	}
	if err := w.Pages().Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := role(t, "import", set, filepath.Join(top, "image"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// The command's own word: the kernel's for a child counts what its parent had
	// when it was started.
	_, peak, _ := strings.Cut(string(out), "peak: ")
	kib, err := strconv.Atoi(strings.TrimSpace(peak))
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("%d KiB", kib)
	if kib > 160<<10 && !raceEnabled {
		t.Errorf("%d KiB for %d of pages", kib, size)
	}
}

// What has more files than a page server of ours can list is an image all the same, and it is said
// that it cannot be served.
func TestImportOfManyFiles(t *testing.T) {
	for tasks, warns := range map[int]bool{300: false, 1500: true} {
		top := t.TempDir()
		d, err := imgfile.Open(top)
		for i := 1; err == nil && i <= tasks; i++ {
			var w *imgfile.MemoryWriter
			if w, err = d.CreateMemory(imgfile.OfTask(4000000+i), uint32(i)); err == nil {
				err = w.Close()
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		_, code, said := convertSet(t, top, filepath.Join(t.TempDir(), "image"))
		if code != 0 || strings.Contains(said, "too many files") != warns {
			t.Errorf("%d tasks: exit code %d: %s", tasks, code, said)
		}
	}
}

func TestImportFails(t *testing.T) {
	top := t.TempDir()
	empty, img := filepath.Join(top, "empty"), filepath.Join(top, "image")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(top, "damaged")
	if err := os.Mkdir(damaged, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(damaged, "pagemap-7.img"), []byte("no pagemap"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		code int
	}{
		"no set":     {[]string{filepath.Join(top, "nothing"), img}, verb.Failed},
		"empty":      {[]string{empty, img}, verb.Failed},
		"damaged":    {[]string{damaged, img}, verb.Damaged},
		"taken":      {[]string{empty, top}, verb.Failed},
		"codec":      {[]string{"--codec", "rar", empty, img}, verb.Usage},
		"chunk size": {[]string{"--chunk-size", "5KiB", empty, img}, verb.Usage},
		"large":      {[]string{"--chunk-size", "8MiB", empty, img}, verb.Usage},
		"one word":   {[]string{empty}, verb.Usage},
	} {
		t.Run(name, func(t *testing.T) {
			if _, code, said := convertSet(t, c.args...); code != c.code || said == "" {
				t.Errorf("exit code %d, not %d: %s", code, c.code, said)
			}
			if _, err := os.Stat(img); !os.IsNotExist(err) {
				t.Errorf("an image is left: %v", err)
			}
			if left, err := fs.Glob(os.DirFS(top), ".*"); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}
