package thread

import (
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func attr(t *testing.T) *unix.SchedAttr {
	t.Helper()
	a, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// lock gives the test a thread that ends with it.
func lock(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}

// A thread in a hurry has the short slice, its children have not, and all is
// as before afterwards.
func TestHurry(t *testing.T) {
	lock(t, func() {
		before := attr(t)
		end := Hurry()
		if a := attr(t); a.Flags != unix.SCHED_FLAG_RESET_ON_FORK || a.Policy != unix.SCHED_NORMAL || a.Nice != before.Nice {
			t.Errorf("in a hurry: %+v", a)
		}
		out, err := exec.Command("cat", "/proc/self/sched").Output()
		if err == nil && strings.Contains(string(out), "se.slice") && strings.Contains(string(out), " 100000\n") {
			t.Errorf("a child is in a hurry too:\n%s", out)
		}
		end()
		if a := attr(t); *a != *before {
			t.Errorf("afterwards: %+v, not %+v", a, before)
		}
	})
}

// A thread that works ahead is last while somebody waits, and not for longer.
func TestBehind(t *testing.T) {
	lock(t, func() {
		b := FallBehind()
		for _, waited := range []bool{true, true, false, true, false} {
			b.Yield(waited)
			want := uint32(unix.SCHED_NORMAL)
			if waited && b.mayReturn {
				want = unix.SCHED_IDLE
			}
			if a := attr(t); a.Policy != want || a.Nice != behindNice {
				t.Errorf("waited %v: %+v", waited, a)
			}
		}
	})
}

// A thread that has been moved is there, and may still run wherever it might before.
func TestMoveTo(t *testing.T) {
	lock(t, func() {
		var before, after unix.CPUSet
		if err := unix.SchedGetaffinity(0, &before); err != nil {
			t.Fatal(err)
		}
		arrived := before.Count() == 1
		// It may be moved before, to where it is to go, and away before it is seen there.
		for round := 0; round == 0 || !arrived && round < 100; round++ {
			for cpu := range len(before) * 64 {
				from := Processor()
				if cpu > 64 && !before.IsSet(cpu) {
					continue
				}
				MoveTo(cpu)
				arrived = arrived || before.IsSet(cpu) && cpu != from && Processor() == cpu
				if err := unix.SchedGetaffinity(0, &after); err != nil || after != before {
					t.Fatalf("after a move to %d: %v, %v, not %v", cpu, after, err, before)
				}
			}
		}
		if !arrived {
			t.Error("it never arrived")
		}
	})
}
