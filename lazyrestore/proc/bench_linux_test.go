package proc

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// BenchmarkSeize seizes 9 threads and lets them go; BenchmarkInject then runs
// a table of one call, and of a hundred, in one of them.
func BenchmarkSeize(b *testing.B) {
	pid, tr := benchTarget(b)
	for b.Loop() {
		if _, err := tr.SeizeAll(context.Background(), pid); err != nil {
			b.Fatal(err)
		}
		if err := tr.DetachAll(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkInject(b *testing.B) {
	pid, tr := benchTarget(b)
	tids, err := tr.SeizeAll(b.Context(), pid)
	if err != nil {
		b.Fatal(err)
	}
	vmas, err := ReadMaps(pid)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("region", func(b *testing.B) {
		for b.Loop() {
			in, err := tr.NewInjector(pid, vmas, InjectorOptions{})
			if err != nil {
				b.Fatal(err)
			}
			if err := in.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
	in, err := tr.NewInjector(pid, vmas, InjectorOptions{})
	if err != nil {
		b.Fatal(err)
	}
	for name, n := range map[string]int{"1": 1, "100": 100} {
		calls := make([]Call, n)
		for i := range calls {
			calls[i].NR = unix.SYS_GETPPID
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := in.Run(tids[1], calls, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// benchTarget starts eight threads that sleep.
func benchTarget(b *testing.B) (pid int, tr *Tracer) {
	b.Helper()
	uffdtest.Need(b, "ptrace", "cmd:gcc")
	bin := filepath.Join(b.TempDir(), "target")
	if out, err := exec.Command("gcc", "-O2", "-pthread", "-o", bin, "testdata/target.c").CombinedOutput(); err != nil {
		b.Fatalf("gcc: %v\n%s", err, out)
	}
	cmd := exec.Command(bin, "pause", "pause", "pause", "pause", "pause", "pause", "pause", "pause")
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		b.Fatal(err)
	}
	if tr, err = NewTracer(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = tr.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid, tr
}
