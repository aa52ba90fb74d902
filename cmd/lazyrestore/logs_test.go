package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

func TestSweepLogs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "[a*b?") // no pattern
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	const week = 7 * 24 * time.Hour
	tests := []struct { // those pids are above the largest
		name, text string
		age        time.Duration
		open       bool // for writing
		stays      bool
	}{
		{name: "4194305.log", age: week - time.Hour, stays: true}, // an image may name it
		{name: "4194306.log", age: week + time.Hour},
		{name: "4194307.log", text: "it went wrong\n", age: week + time.Hour},
		{name: "4194308.log", age: week + time.Hour, open: true, stays: true},
		{name: itoa(os.Getpid()) + ".log", age: week + time.Hour, stays: true},
		{name: "restore-1.log", age: week - time.Hour, stays: true},
		{name: "restore-2.log", age: week + time.Hour},
		{name: "restore-3.log", text: "killed\n", age: week + time.Hour, open: true, stays: true},
		{name: "restore-x.log", age: week + time.Hour, stays: true},
		{name: "serve.log", age: week + time.Hour, stays: true},
		{name: "-5.log", age: week + time.Hour, stays: true},
		{name: "4194309.sock", age: week + time.Hour, stays: true},
		{name: "4194310", age: week + time.Hour, stays: true},
	}
	for _, tt := range tests {
		path := filepath.Join(dir, tt.name)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(tt.text); err != nil {
			t.Fatal(err)
		}
		if !tt.open {
			f.Close()
		}
		then := time.Now().Add(-tt.age)
		if err := os.Chtimes(path, then, then); err != nil {
			t.Fatal(err)
		}
	}
	sweepLogs(dir)
	for _, tt := range tests {
		if _, err := os.Lstat(filepath.Join(dir, tt.name)); (err == nil) != tt.stays {
			t.Errorf("%s, %q, %v old, open: %v: %v, want it to stay: %v", tt.name, tt.text, tt.age, tt.open, err, tt.stays)
		}
	}
}

// The log that a restored process writes to stays while it lives, and an image of it can
// be restored, whose process writes to the log that the image names.
func TestLogOfRestoredProcess(t *testing.T) {
	uffdtest.Need(t, "uffd", "ptrace", "root")
	if err := unix.CloseRange(3, 1<<20, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	sleep := exec.Command("sleep", "1000")
	sleep.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdout, err := sleep.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer sleep.Process.Kill()
	pid := sleep.Process.Pid
	log := "/run/lazyrestore/" + itoa(pid) + ".log"
	defer os.Remove(log)
	save := func() (img string) {
		img = filepath.Join(t.TempDir(), "img")
		if err := lazyrestoreCommand(t, "checkpoint", "-D", img, itoa(pid)).Run(); err != nil {
			t.Fatal(err)
		}
		return img
	}
	run := func(args ...string) (pid string) {
		out, err := lazyrestoreCommand(t, append([]string{"restore", "-d"}, args...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		pid = strings.TrimSpace(string(out))
		if at, err := os.Readlink("/proc/" + pid + "/fd/1"); at != log {
			t.Errorf("its standard output is %s, %v; want %s", at, err, log)
		}
		return pid
	}
	img := save()
	stdout.Close()
	sleep.Wait()
	run(img)
	then := time.Now().Add(-2 * keepLog)
	if err := os.Chtimes(log, then, then); err != nil {
		t.Fatal(err)
	}
	if unused(log) {
		t.Error("its process lives, and its log is taken for one that nobody writes to")
	}
	again, err := strconv.Atoi(run("--pid-ns", save()))
	if err != nil {
		t.Fatal(err)
	}
	end(t, again)
}
