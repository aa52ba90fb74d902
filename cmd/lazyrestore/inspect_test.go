package main

import (
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
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
