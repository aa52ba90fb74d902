package pager

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestProcessorIn(t *testing.T) {
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
		if cpu, ok := processorIn([]byte(tt.stat), tt.alone); cpu != tt.cpu || ok != tt.ok {
			t.Errorf("processorIn(%q, %v) = %d, %v", tt.stat, tt.alone, cpu, ok)
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
	if cpu, ok := processorIn(own, false); !ok || !all.IsSet(cpu) {
		t.Errorf("this process runs on processor %d, %v", cpu, ok)
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
