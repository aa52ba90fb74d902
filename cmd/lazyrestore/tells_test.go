package main

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// Who asks for it is told of the phases, with counts and times; nobody else is.
func TestVerbsSayWhatTheyDo(t *testing.T) {
	uffdtest.Need(t, "uffd", "ptrace", "root")
	if err := unix.CloseRange(3, 1<<20, unix.CLOSE_RANGE_CLOEXEC); err != nil { // as in imageOf
		t.Fatal(err)
	}
	program := exec.Command("sleep", "1000")
	program.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	pid := program.Process.Pid
	defer program.Wait()
	defer program.Process.Kill()
	asleep(t, pid)
	says := func(verbose bool, messages []string, args ...string) {
		t.Helper()
		cmd := lazyrestoreCommand(t, args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v: %s", err, &stderr)
		}
		rest := stderr.String()
		for _, m := range messages {
			_, after, found := strings.Cut(rest, `level=INFO msg="`+m+`"`)
			line, _, _ := strings.Cut(after, "\n")
			if found != verbose || verbose && !strings.Contains(line, "took=") && !strings.Contains(line, "stood_still=") {
				t.Errorf("%v: %q is there: %v, want %v:\n%s", args, m, found, verbose, &stderr)
			}
			if found {
				rest = after
			}
		}
	}
	begins := []string{"the process stands still", "its state is known"}
	dir := t.TempDir()
	says(true, begins, "checkpoint", "-v", "-n", itoa(pid))
	says(true, slices.Concat(begins, []string{"its memory has been read", "the process runs on", "the image is on the disk"}), "checkpoint", "-v", "-R", "-D", dir+"/a", itoa(pid))
	says(false, begins, "checkpoint", "-R", "-D", dir+"/b", itoa(pid))
	says(true, slices.Concat(begins, []string{"its memory has been read", "the image is on the disk", "the process has been ended"}), "checkpoint", "-v", "-D", dir+"/c", itoa(pid))
	program.Wait()

	restore := lazyrestoreCommand(t, "restore", "-v", dir+"/c")
	restore.Stderr = nil
	stderr, err := restore.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := restore.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(uffdtest.Timeout, func() { _ = restore.Process.Signal(unix.SIGTERM) })
	defer late.Stop()
	lines := bufio.NewScanner(stderr)
	for said := false; !said; {
		if !lines.Scan() {
			t.Fatalf("nothing says that the process runs: %v", restore.Wait())
		}
		said = strings.Contains(lines.Text(), `level=INFO msg="the process runs" pid=`+itoa(pid)+" ")
	}
	end(t, pid)
	rest, _ := io.ReadAll(stderr)
	if !strings.Contains(string(rest), `msg="the pager leaves"`) {
		t.Errorf("nothing says that the pager leaves: %s", rest)
	}
	_ = restore.Wait()
}

// A signal may end the detached restore before it could tell of anything: that is what is told, and
// of a log that is empty nothing is.
func TestDetachedRestoreInterruptedAtOnce(t *testing.T) {
	for _, tt := range []struct {
		log, want string
		by        unix.Signal
		kept      bool
	}{
		{"", "interrupted by SIGINT", unix.SIGINT, false},
		{"a message", "ended before", unix.SIGINT, true},
		{"", "ended before", 0, true},
	} {
		log := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(log, []byte(tt.log), 0o600); err != nil {
			t.Fatal(err)
		}
		err := new(restoreVerb).reported(nil, log, tt.by)
		_, gone := os.Stat(log)
		if err == nil || !strings.Contains(err.Error(), tt.want) || (gone == nil) != tt.kept {
			t.Errorf("%+v: %v; the log: %v", tt, err, gone)
		}
	}
}
