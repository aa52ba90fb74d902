package pager

import (
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
)

func TestStatusIn(t *testing.T) {
	// 17 fields from the state on, the number of threads, 18 more, the processor.
	stat := func(threads, processor string) string {
		return "7 (a) b) S " + strings.Repeat("0 ", 16) + threads + strings.Repeat(" 0", 18) + " " + processor + " 0 0\n"
	}
	for _, tt := range []struct {
		stat  string
		alone bool
		cpu   int
		ok    bool
	}{
		{stat("1", "5"), false, 5, true},
		{stat("1", "5"), true, 5, true},
		{stat("2", "5"), false, 5, true},
		{stat("2", "5"), true, 0, false},
		{stat("1", "x"), false, 0, false},
		{"7 (a) S 0 0", false, 0, false},
		{"", true, 0, false},
	} {
		if does, cpu, ok := statusIn([]byte(tt.stat), tt.alone); cpu != tt.cpu || ok != tt.ok || ok && does != 'S' {
			t.Errorf("statusIn(%q, %v) = %c, %d, %v", tt.stat, tt.alone, does, cpu, ok)
		}
	}
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	if does, cpu, ok := statusIn(own, false); !ok || !all.IsSet(cpu) || does != 'R' && does != 'S' {
		t.Errorf("this process is %c on processor %d, %v", does, cpu, ok)
	}
}

// A thread that raises several faults is looked for, and forgotten for
// another one.
func TestFollower(t *testing.T) {
	s := &space{model: &model{pid: os.Getpid()}}
	var w follower
	defer w.forget()
	for i := range followFirst {
		if w.cpu >= 0 && i > 0 {
			t.Fatalf("looked for after %d faults", i)
		}
		w.served()
		w.fault(fault{s: s, tid: uint32(os.Getpid())})
	}
	if w.fd == 0 || w.alone || w.cpu < 0 {
		t.Fatalf("after %d faults: %+v", followFirst, w)
	}
	if w.served(); w.cpu >= 0 {
		t.Error("gone to it, and again")
	}
	was := w.fd
	if w.due {
		t.Error("its file is to be opened again")
	}
	w.fault(fault{s: s, tid: 1<<31 - 1})
	if w.fd != 0 || w.faults != 1 {
		t.Errorf("after one of another thread: %+v", w)
	}
	if err := unix.Close(was); err == nil {
		t.Error("the file of the first thread stayed open")
	}
	for range followFirst {
		w.fault(fault{s: s, tid: 1<<31 - 1}) // no such thread
		w.served()
	}
	if w.fd == 0 || !w.alone {
		t.Errorf("of a thread without a name: %+v", w)
	}
}

// A file that cannot be opened is tried for once, not after each fault of a stream, which it is not told of.
func TestFollowerTriesOnce(t *testing.T) {
	s := &space{model: &model{pid: 1<<31 - 1}} // no such process
	var w follower
	defer w.forget()
	for range followFirst / 2 {
		w.served()
		w.fault(fault{s: s, tid: 1})
	}
	if w.served(); w.fd != 0 || w.due {
		t.Fatalf("of no process: %+v", w)
	}
	s.pid = os.Getpid()
	if w.served(); w.fd != 0 {
		t.Error("tried for again, though no fault was told")
	}
}

// pinned runs f on a thread that may run on cpu alone, and ends with it.
func pinned(t *testing.T, cpu int, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and is not given back
		var one unix.CPUSet
		one.Set(cpu)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

// runner is a thread that does nothing but run, on cpu, until end is called.
func runner(t *testing.T, cpu int) (tid int, end func()) {
	t.Helper()
	tids, ended := make(chan int), make(chan struct{})
	var stop atomic.Bool
	go func() {
		defer close(ended)
		pinned(t, cpu, func() {
			tids <- unix.Gettid()
			for !stop.Load() {
				continue
			}
		})
	}()
	return <-tids, func() {
		stop.Store(true)
		<-ended
	}
}

// eventually is ok(), asked again if it is not what is wanted: Go may have put a thread that runs to sleep for a moment.
func eventually(want bool, ok func() bool) bool {
	for range 1000 {
		if ok() == want {
			return want
		}
		thread.Yield()
	}
	return !want
}

// A thread that is ready to run where the reader is waits for it. One that sleeps, or is
// elsewhere, does not, and there it is not looked for again.
func TestWaitsHere(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0)))) // it computes while we look
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	var cpus []int
	for cpu := 0; len(cpus) < 2 && cpu < len(all)*64; cpu++ {
		if all.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	for _, cpu := range cpus {
		tid, end := runner(t, cpu)
		pinned(t, cpus[0], func() {
			w := follower{s: &space{model: &model{pid: os.Getpid()}}, tid: uint32(tid)}
			defer w.forget()
			w.open(os.Getpid())
			here := cpu == cpus[0]
			if got := eventually(here, w.waitsHere); got != here || w.elsewhere == here {
				t.Errorf("one that runs on processor %d waits for %d: %v", cpu, cpus[0], got)
			}
			fd := w.fd
			w.fd = -1
			if got := w.waitsHere(); got || w.elsewhere == here {
				t.Errorf("of a file that cannot be read: %v, elsewhere: %v", got, w.elsewhere)
			}
			w.fd = fd
		})
		end()
	}
	parked, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(parked)
	tids, ended := make(chan int), make(chan struct{})
	go pinned(t, cpus[0], func() {
		defer close(ended)
		tids <- unix.Gettid()
		_, _ = unix.Read(parked, make([]byte, 8))
	})
	tid := <-tids
	pinned(t, cpus[0], func() {
		w := follower{s: &space{model: &model{pid: os.Getpid()}}, tid: uint32(tid)}
		defer w.forget()
		w.open(os.Getpid())
		if eventually(false, w.waitsHere) || w.elsewhere {
			t.Error("one that sleeps is waited for")
		}
	})
	_, _ = unix.Write(parked, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-ended
}
