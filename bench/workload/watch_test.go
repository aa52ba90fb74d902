package workload

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Who watches a program is told when it has printed something, and of nothing before.
func TestWatch(t *testing.T) {
	p := &Process{Dir: t.TempDir()}
	if _, err := p.Watch(); err == nil {
		t.Error("watching what is not there: no error")
	}
	stdout, err := os.Create(filepath.Join(p.Dir, "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	print := func(s string) {
		if _, err := stdout.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	print("before\n")
	w, err := p.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, line := range []string{"one\n", "two\n"} {
		select {
		case <-w.Changed():
			t.Error("told of nothing")
		default:
		}
		print(line)
		select {
		case <-w.Changed():
		case <-time.After(time.Minute):
			t.Fatalf("not told of %q", line)
		}
	}
}
