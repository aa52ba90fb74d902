package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
)

// An image that was made of CRIU's has no name of the process, and one that a
// page server received no process.
func TestInspectionOfProcess(t *testing.T) {
	for _, tt := range []struct {
		in   image.Process
		want string
	}{
		{image.Process{PID: 7, Comm: "md", Threads: 2, Mappings: 1}, "process   7 (md), 2 threads, 1 mapping\n"},
		{image.Process{PID: 7, Threads: 2, Mappings: 1}, "process   7, 2 threads, 1 mapping\n"},
		{image.Process{}, ""},
	} {
		got := ""
		for line := range strings.Lines((&inspection{Manifest: &image.Manifest{Process: tt.in}}).text()) {
			if strings.HasPrefix(line, "process") {
				got += line
			}
		}
		if got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.in, got, tt.want)
		}
	}
}

// A state that makes no sense is damage, also where the sums say that it was written so.
func TestMadeUpState(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "img")
	staging, err := store.CreateDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	w, err := image.NewWriter(staging, image.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	o, err := w.Object(image.ProcessObject)
	if err == nil {
		_, err = o.Write([]byte("LRPROC1\nmade up"))
	}
	if err == nil {
		err = o.Close()
	}
	if err == nil {
		_, err = w.Finish(t.Context(), image.Manifest{})
	}
	if err == nil {
		err = staging.Commit()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, does := range []string{"inspect", "verify"} {
		var stdout, stderr strings.Builder
		if code := run([]string{does, dir}, &stdout, &stderr); code != verb.Damaged || !strings.Contains(stderr.String(), image.ProcessObject+" at offset 9: ") {
			t.Errorf("%s: exit code %d, want %d: %s", does, code, verb.Damaged, &stderr)
		}
	}
}
