package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

func TestExpand(t *testing.T) {
	tests := []struct {
		name, in string
		env      map[string]string
		want     string // "": a usage error
	}{
		{"nothing", "/scratch/img", nil, "/scratch/img"},
		{"pid", "./lazyrestore-%p", nil, "./lazyrestore-4711"},
		{"host", "%h", nil, "node7"},
		{"percent", "100%%-%p", nil, "100%-4711"},
		{"job", "%j/%t", map[string]string{"SLURM_JOB_ID": "99", "SLURM_PROCID": "3"}, "99/3"},
		{"Slurm before PMI", "%t", map[string]string{"SLURM_PROCID": "0", "PMI_RANK": "5"}, "0"},
		{"PMIx before Open MPI", "%t", map[string]string{"PMIX_RANK": "1", "OMPI_COMM_WORLD_RANK": "2"}, "1"},
		{"Open MPI before PMI", "%t", map[string]string{"OMPI_COMM_WORLD_RANK": "2", "PMI_RANK": "3"}, "2"},
		{"PMI", "%t", map[string]string{"PMI_RANK": "3"}, "3"},
		{"no job", "%j", nil, ""},
		{"no rank", "%t", nil, ""},
		{"unknown", "%x", nil, ""},
		{"lone", "img%", nil, ""},
		{"path in a variable", "%j", map[string]string{"SLURM_JOB_ID": "../../etc"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := names{4711, func(name string) string { return tt.env[name] }, func() (string, error) { return "node7.cluster", nil }}
			got, err := n.expand(tt.in)
			var usage *cli.UsageError
			if tt.want == "" {
				if !errors.As(err, &usage) || usage.Hint == "" {
					t.Errorf("%q, %v; want a usage error with a hint", got, err)
				}
			} else if err != nil || got != tt.want {
				t.Errorf("%q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func TestSizeText(t *testing.T) {
	for in, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 10 << 10: "10 KiB", 1<<20 - 1: "1 MiB", 670 << 20: "670 MiB",
		1 << 30: "1 GiB", 3 << 40: "3 TiB", 1<<64 - 1: "16 EiB",
	} {
		if got := sizeText(in); got != want {
			t.Errorf("sizeText(%d) = %q, want %q", in, got, want)
		}
	}
}

func TestTimeText(t *testing.T) {
	for in, want := range map[time.Duration]string{
		85 * time.Microsecond: "85 µs", 4200 * time.Microsecond: "4.2 ms", 14 * time.Millisecond: "14 ms",
		2400 * time.Millisecond: "2.4 s", 192 * time.Second: "3m12s",
	} {
		if got := timeText(in); got != want {
			t.Errorf("timeText(%v) = %q, want %q", in, got, want)
		}
	}
}

// clock is a time that a test sets.
type clock struct{ now time.Time }

func (c *clock) advance(d time.Duration) { c.now = c.now.Add(d) }

func TestPlainProgress(t *testing.T) {
	var b strings.Builder
	c := &clock{time.Unix(0, 0)}
	m := newMeter(&b, progressPlain)
	m.now = func() time.Time { return c.now }
	for range 12 {
		m.show(lazyrestore.Progress{Phase: "write", Done: uint64(c.now.Unix()) << 20, Total: 100 << 20})
		c.advance(time.Second)
	}
	want := "lazyrestore: write 5 % 5 MiB of 100 MiB, 1 MiB/s, 1m35s left\n" +
		"lazyrestore: write 10 % 10 MiB of 100 MiB, 1 MiB/s, 1m30s left\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

func TestBarProgress(t *testing.T) {
	var b strings.Builder
	c := &clock{time.Unix(0, 0)}
	m := newMeter(&b, progressBar)
	m.now = func() time.Time { return c.now }
	m.show(lazyrestore.Progress{Phase: "freeze"})
	m.show(lazyrestore.Progress{Phase: "write", Total: 64 << 20})
	c.advance(2 * time.Second)
	m.show(lazyrestore.Progress{Phase: "write", Done: 16 << 20, Total: 64 << 20})
	m.show(lazyrestore.Progress{Phase: "write", Done: 65 << 20, Total: 64 << 20}) // more than there seemed to be
	m.clear()
	for _, want := range []string{"\r\x1b[Kfreeze\r", "write 25 % 16 MiB of 64 MiB, 8 MiB/s, 6s left [#", "write 100 % 64 MiB of 64 MiB"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in %q", want, b.String())
		}
	}
	for line := range strings.SplitSeq(b.String(), "\r\x1b[K") {
		if len(line) >= 80 {
			t.Errorf("a bar of %d columns does not fit into 80: %q", len(line), line)
		}
	}
	if !strings.HasSuffix(b.String(), "\r\x1b[K") {
		t.Errorf("%q leaves the bar on the screen", b.String())
	}
}

func TestOutputAppearsWholeOrNot(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "pid")
	kept, err := newOutput(path)
	if err != nil {
		t.Fatal(err)
	}
	dropped, err := newOutput(path)
	if err != nil {
		t.Fatal(err)
	}
	dropped.discard()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after discard: %v, want no file", err)
	}
	if err := kept.commit([]byte("4711\n")); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "4711\n" {
		t.Errorf("%q, %v", text, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v: want one file", entries, err)
	}
	if _, err := newOutput(filepath.Join(dir, "nowhere", "pid")); err == nil {
		t.Error("a file in a directory that is not there can be opened")
	}
}

// Whoever names /dev/null, /dev/stdout or a FIFO does not want a file in its place.
func TestOutputReplacesRegularFilesOnly(t *testing.T) {
	dir := t.TempDir()
	fifo, link, target := filepath.Join(dir, "fifo"), filepath.Join(dir, "link"), filepath.Join(dir, "target")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(target, []byte("what was there before"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("target", link); err != nil {
		t.Fatal(err)
	}
	if _, err := newOutput(fifo); !errors.Is(err, unix.ENXIO) {
		t.Errorf("a FIFO that nobody reads: %v, want ENXIO", err)
	}
	reader, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for _, path := range []string{fifo, link} {
		o, err := newOutput(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.commit([]byte("4711\n")); err != nil {
			t.Error(err)
		}
	}
	if text, err := io.ReadAll(reader); err != nil || string(text) != "4711\n" {
		t.Errorf("from the FIFO %q, %v", text, err)
	}
	if text, err := os.ReadFile(target); err != nil || string(text) != "4711\n" {
		t.Errorf("at the end of the link %q, %v", text, err)
	}
	for path, want := range map[string]os.FileMode{fifo: os.ModeNamedPipe, link: os.ModeSymlink} {
		if info, err := os.Lstat(path); err != nil || info.Mode().Type() != want {
			t.Errorf("%s is %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	if _, err := newOutput(dir); !errors.Is(err, unix.EISDIR) {
		t.Errorf("a directory: %v, want EISDIR", err)
	}
}

func TestKernelAtLeast(t *testing.T) {
	for release, want := range map[string]bool{
		"5.13.0": true, "5.12.19-generic": false, "6.1.0-25-amd64": true, "4.18.0-553.el8": false, "10.0": true, "": false, "unknown": false,
	} {
		if got := kernelAtLeast(release, 5, 13); got != want {
			t.Errorf("kernelAtLeast(%q) = %v, want %v", release, got, want)
		}
	}
}
