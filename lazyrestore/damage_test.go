package lazyrestore_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

// objects are the files of an image with codec lz4.
var objects = []string{"manifest.json", "process.bin", "eager.raw", "pages.idx", "pages.lz4"}

// damages are what befalls a file of an image.
var damages = map[string]func(file string, n *rand.Rand) error{
	"missing": func(file string, _ *rand.Rand) error { return os.Remove(file) },
	"empty":   func(file string, _ *rand.Rand) error { return os.Truncate(file, 0) },
	"truncated": func(file string, n *rand.Rand) error {
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		return os.Truncate(file, n.Int64N(info.Size()))
	},
	"longer": func(file string, _ *rand.Rand) error {
		f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.Write(make([]byte, 4096))
		return err
	},
	"a bit flipped": func(file string, n *rand.Rand) error {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		text[n.IntN(len(text))] ^= 1 << n.IntN(8)
		return os.WriteFile(file, text, 0o600)
	},
	"a page zero": func(file string, n *rand.Rand) error {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		at := n.IntN(len(text))
		clear(text[at:min(len(text), at+4096)])
		return os.WriteFile(file, text, 0o600)
	},
}

// A damaged image is refused, or its process never sees a wrong byte: it gets
// SIGBUS where a page cannot be had, or is killed where none can, and the pager
// says so.
func TestDamagedImages(t *testing.T) {
	t.Parallel()
	for what, damage := range damages {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := start(t, "look", "8")
			s.checkpoint(plainest)
			s.release()
			whole := s.image
			said := int64(len(s.output()))
			for n, object := range objects {
				dir := copyImage(t, whole)
				seed := rand.New(rand.NewPCG(uint64(n), 1))
				if err := damage(filepath.Join(dir, object), seed); err != nil {
					t.Fatal(err)
				}
				for _, r := range []lazyrestore.RestoreOptions{lazily, eagerly} {
					if err := os.Truncate(filepath.Join(s.dir, "out"), said); err != nil {
						t.Fatal(err)
					}
					s.image = dir
					harmless(t, s, object, what, r)
				}
			}
			s.image = whole
			if err := os.Truncate(filepath.Join(s.dir, "out"), said); err != nil {
				t.Fatal(err)
			}
			s.restore(filling)
			s.well()
		})
	}
}

// harmless restores a damaged image, or sees that it is refused.
func harmless(t *testing.T, s *subject, object, what string, r lazyrestore.RestoreOptions) {
	t.Helper()
	name := fmt.Sprintf("%s %s, %s", object, what, backgroundName(r))
	if err := s.tryRestore(r); err != nil {
		if !errors.Is(err, image.ErrDamaged) && !errors.Is(err, image.ErrVersion) {
			t.Errorf("%s: %v, want one that says damaged", name, err)
		}
		var d *image.DamagedError
		if errors.As(err, &d) && d.Frame != image.NoFrame && object != "pages.lz4" {
			t.Errorf("%s: %v, which names a frame of what has none", name, err)
		}
		if err := unix.Kill(s.pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("%s: after the error there is a process %d", name, s.pid)
		}
		return
	}
	if !ended(t, s.pid, patience) {
		t.Errorf("%s: the process waits for ever", name)
		s.endRestored()
		return
	}
	status := s.status()
	pagerErr := s.proc.WaitPager()
	if contains(s.output(), "lost") {
		t.Errorf("%s: the process saw a wrong byte: %s", name, s.output())
	}
	switch {
	case status.Exited() && status.ExitStatus() == 0: // it was not what was needed
	case status.Signaled() && pagerErr == nil:
		t.Errorf("%s: %v, and the pager knows of nothing", name, status.Signal())
	case status.Signal() == unix.SIGBUS, status.Signal() == unix.SIGKILL:
	default:
		t.Errorf("%s: the process ended with exit status %d, %v", name, status.ExitStatus(), status.Signal())
	}
	_ = s.proc.Close()
	s.proc = nil
}

// What is no file is refused, and not waited for: nothing that is tried again
// makes it one.
func TestObjectsThatAreNoFiles(t *testing.T) {
	t.Parallel()
	s := start(t, "look", "1")
	s.checkpoint(plainest)
	whole := s.image
	for what, make := range map[string]func(string) error{
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"FIFO":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"link":      func(path string) error { return os.Symlink(filepath.Join(whole, filepath.Base(path)), path) },
	} {
		for _, object := range objects {
			s.image = copyImage(t, whole)
			file := filepath.Join(s.image, object)
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			if err := make(file); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			if err := s.tryRestore(eagerly); err == nil {
				t.Errorf("%s is a %s: no error", object, what)
				s.endRestored()
			}
			if took := time.Since(begin); took > patience/2 { // else for as long as it may
				t.Errorf("%s is a %s: it took %v to be told", object, what, took)
			}
		}
	}
	s.image = whole
	s.restore(filling)
	s.release()
	s.well()
}

func copyImage(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "image")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// A damaged frame met by a fault is SIGBUS, not a wrong byte, whatever came
// before.
func TestDamagedFrameIsSIGBUS(t *testing.T) {
	t.Parallel()
	s := start(t, "look", "16")
	s.checkpoint(plainest)
	file := filepath.Join(s.image, "pages.lz4")
	text := must(os.ReadFile(file))(t)
	for i := len(text) / 4; i < len(text); i += len(text) / 64 {
		text[i] ^= 0x10
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	s.release()
	s.restore(lazily)
	if status := s.status(); status.Signal() != unix.SIGBUS {
		t.Errorf("ended with exit status %d, %v, want SIGBUS; it said %s", status.ExitStatus(), status.Signal(), s.output())
	}
	if err := s.proc.WaitPager(); !errors.Is(err, image.ErrDamaged) {
		t.Errorf("the pager ended with %v, want ErrDamaged", err)
	}
}

// Objects of another image of the same program are not taken for its own.
func TestSwappedObjects(t *testing.T) {
	t.Parallel()
	s := start(t, "part-by-part", "8", "1")
	s.checkpoint(lazyrestore.CheckpointOptions{LeaveRunning: true})
	other := s.image
	s.release()
	s.ready(2)
	s.checkpoint(plainest)
	whole := s.image
	said := int64(len(s.output()))
	s.release()
	for _, object := range objects[1:] {
		for _, r := range []lazyrestore.RestoreOptions{lazily, eagerly} {
			dir := copyImage(t, whole)
			text := must(os.ReadFile(filepath.Join(other, object)))(t)
			if own := must(os.ReadFile(filepath.Join(whole, object)))(t); bytes.Equal(own, text) {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, object), text, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(filepath.Join(s.dir, "out"), said); err != nil {
				t.Fatal(err)
			}
			s.image = dir
			harmless(t, s, object, "of another image", r)
		}
	}
}

// manifests are changes that a manifest must not get away with.
var manifests = []struct {
	name   string
	change func(m map[string]any)
	want   error // nil: any refusal
}{
	{"newer version", func(m map[string]any) { m["version"] = 1000 }, image.ErrVersion},
	{"absurd chunk", func(m map[string]any) { m["chunk_size"] = 1 << 60 }, image.ErrDamaged},
	{"no chunk", func(m map[string]any) { m["chunk_size"] = 0 }, image.ErrDamaged},
	{"unknown codec", func(m map[string]any) { m["codec"] = "brotli" }, nil},
	{"absurd objects", func(m map[string]any) {
		for _, o := range m["objects"].(map[string]any) {
			o.(map[string]any)["size"] = 1 << 60
		}
	}, image.ErrDamaged},
	{"more features than this CPU has", func(m map[string]any) { m["machine"].(map[string]any)["xfeatures"] = 1 << 62 }, nil},
	{"another architecture", func(m map[string]any) { m["machine"].(map[string]any)["arch"] = "arm64" }, nil},
	{"another vDSO", func(m map[string]any) { m["machine"].(map[string]any)["vdso"] = strings.Repeat("0", 64) }, nil},
	{"other pages", func(m map[string]any) { m["machine"].(map[string]any)["page_size"] = 65536 }, nil},
}

// A manifest that asks for what cannot be is refused before anything is made.
func TestAbsurdManifests(t *testing.T) {
	t.Parallel()
	s := start(t, "look", "1")
	s.checkpoint(plainest)
	whole := s.image
	for _, m := range manifests {
		dir := copyImage(t, whole)
		file := filepath.Join(dir, "manifest.json")
		var manifest map[string]any
		if err := json.Unmarshal(must(os.ReadFile(file))(t), &manifest); err != nil {
			t.Fatal(err)
		}
		before := fmt.Sprint(manifest)
		m.change(manifest)
		if fmt.Sprint(manifest) == before {
			t.Errorf("%s: the manifest has no such field: %s", m.name, before)
			continue
		}
		if err := os.WriteFile(file, must(json.Marshal(manifest))(t), 0o600); err != nil {
			t.Fatal(err)
		}
		s.image = dir
		err := s.tryRestore(lazily)
		if err == nil || m.want != nil && !errors.Is(err, m.want) {
			t.Errorf("%s: %v, want %v", m.name, err, m.want)
		}
		if s.proc != nil {
			s.endRestored()
		}
	}
	s.image = whole
	s.restore(filling)
	s.release()
	s.well()
}

// The digest that the user pins is the image's, or nothing is restored.
func TestPinnedDigest(t *testing.T) {
	t.Parallel()
	s := start(t, "look", "1")
	s.checkpoint(plainest)
	r := lazily
	end := s.last.Digest[len(s.last.Digest)-1:]
	r.Digest = strings.TrimSuffix(s.last.Digest, end) + map[bool]string{true: "1", false: "0"}[end == "0"]
	if err := s.tryRestore(r); !errors.Is(err, image.ErrDamaged) {
		t.Errorf("with another digest: %v, want ErrDamaged", err)
	}
	r.Digest = s.last.Digest
	s.restore(r)
	s.release()
	s.well()
}

// A disk that is full in the middle of a checkpoint ends it; the process runs
// on, and nothing is left.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	s := start(t, "works", "24")
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=12m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	for _, codec := range []string{"lz4", "zstd", "none"} {
		dir := filepath.Join(disk, "image")
		_, err := lazyrestore.Checkpoint(t.Context(), s.pid, lazyrestore.CheckpointOptions{Dir: dir, Codec: codec})
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s: %v, want ENOSPC", codec, err)
		}
		left := must(os.ReadDir(disk))(t)
		if len(left) > 0 {
			t.Errorf("%s: %v is left on the disk", codec, left)
		}
	}
	s.cycle(plainest, filling) // elsewhere there is room
	s.release()
	s.well()
}

// The place of the image has to be free.
func TestCheckpointDirectoryInUse(t *testing.T) {
	t.Parallel()
	s := start(t, "look", "1")
	dir := filepath.Join(s.dir, "used")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "keep"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := lazyrestore.Checkpoint(t.Context(), s.pid, lazyrestore.CheckpointOptions{Dir: dir})
	if err == nil {
		t.Error("no error")
	}
	if text := must(os.ReadFile(filepath.Join(dir, "keep")))(t); string(text) != "precious" {
		t.Errorf("what was there is %q now", text)
	}
	s.release()
	s.well()
}
