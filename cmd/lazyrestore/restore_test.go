package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

// A fakeProcess stands for a restored one: a child of ours.
type fakeProcess struct {
	cmd      *exec.Cmd
	resident chan struct{}
	pagerErr error
}

func (p *fakeProcess) PID() int { return p.cmd.Process.Pid }
func (p *fakeProcess) Result() lazyrestore.RestoreResult {
	return lazyrestore.RestoreResult{PID: p.PID(), Mappings: 3, LazyBytes: 1 << 20, Warnings: []string{"a file grew"}}
}
func (p *fakeProcess) Signal(sig unix.Signal) error { return p.cmd.Process.Signal(sig) }
func (p *fakeProcess) Resident() <-chan struct{}    { return p.resident }
func (p *fakeProcess) WaitPager() error             { return p.pagerErr }
func (p *fakeProcess) DeathSignal() bool            { return false }
func (p *fakeProcess) Close() error                 { return nil }
func (p *fakeProcess) Stats() lazyrestore.Stats     { return lazyrestore.Stats{Faults: 17} }

func (p *fakeProcess) Wait() (unix.WaitStatus, error) {
	var exit *exec.ExitError
	if err := p.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	return unix.WaitStatus(p.cmd.ProcessState.Sys().(syscall.WaitStatus)), nil
}

// fakeRestore makes restores run a shell script instead.
func fakeRestore(t *testing.T, script string) (opts *lazyrestore.RestoreOptions) {
	t.Helper()
	opts = new(lazyrestore.RestoreOptions)
	real := restoreImage
	t.Cleanup(func() {
		restoreImage = real
		// What other tests start is not to inherit that SIGPIPE is ignored.
		c := make(chan os.Signal, 1)
		signal.Notify(c, unix.SIGPIPE)
		signal.Stop(c)
	})
	restoreImage = func(_ context.Context, _ string, o lazyrestore.RestoreOptions) (process, error) {
		*opts = o
		p := &fakeProcess{cmd: exec.Command("sh", "-c", script), resident: make(chan struct{})}
		close(p.resident)
		return p, p.cmd.Start()
	}
	return opts
}

func TestForegroundEndsAsTheProcess(t *testing.T) {
	tests := []struct {
		script string
		want   int
	}{
		{"exit 0", 0},
		{"exit 3", 3},
		{"exit 125", 125},
		{"kill -KILL $$", 128 + 9},
		{"kill -TERM $$", 128 + 15},
		{"kill -SEGV $$", 128 + 11},
	}
	for _, tt := range tests {
		t.Run(tt.script, func(t *testing.T) {
			fakeRestore(t, tt.script)
			var stdout, stderr bytes.Buffer
			if got := run([]string{"restore", "img"}, &stdout, &stderr); got != tt.want {
				t.Errorf("exit code %d, want %d; %s", got, tt.want, &stderr)
			}
			if stdout.Len() != 0 || !strings.Contains(stderr.String(), "warning: a file grew") {
				t.Errorf("stdout %q, stderr %q: want a warning on stderr only", &stdout, &stderr)
			}
		})
	}
}

// Who reads the messages of a restore may end first: the process that runs still needs it.
func TestForegroundOutlivesItsReader(t *testing.T) {
	fakeRestore(t, "exit 3")
	start := restoreImage
	restoreImage = func(ctx context.Context, path string, o lazyrestore.RestoreOptions) (process, error) {
		p, err := start(ctx, path, o)
		fmt.Fprintln(os.Stderr, "a warning about a process that runs already")
		return p, err
	}
	r, w, err := os.Pipe()
	if err == nil {
		err = r.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	saved, err := unix.FcntlInt(2, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(saved)
	if err := unix.Dup3(int(w.Fd()), 2, 0); err != nil {
		t.Fatal(err)
	}
	code := run([]string{"restore", "img"}, io.Discard, os.Stderr)
	if err := unix.Dup3(saved, 2, 0); err != nil {
		t.Fatal(err)
	}
	if code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
}

func TestForegroundPassesSignalsOn(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGHUP, unix.SIGINT, unix.SIGXCPU} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			ready := filepath.Join(t.TempDir(), "ready")
			if err := unix.Mkfifo(ready, 0o600); err != nil {
				t.Fatal(err)
			}
			name := strings.TrimPrefix(unix.SignalName(sig), "SIG")
			// No wait without end: a signal that comes just before one begins is looked at behind it.
			fakeRestore(t, "trap 'exit 42' "+name+"; echo >"+ready+"; while :; do sleep 0.01; done")
			done := make(chan int)
			go func() { done <- run([]string{"restore", "-q", "img"}, &bytes.Buffer{}, &bytes.Buffer{}) }()
			if _, err := os.ReadFile(ready); err != nil {
				t.Fatal(err)
			}
			// It has asked for signals before it made the process.
			if err := unix.Kill(unix.Getpid(), sig); err != nil {
				t.Fatal(err)
			}
			if code := <-done; code != 42 {
				t.Errorf("exit code %d, want 42: the process did not get the signal", code)
			}
		})
	}
}

func TestRestoreWritesFiles(t *testing.T) {
	opts := fakeRestore(t, "exit 0")
	dir := t.TempDir()
	pidfile, stats, trace := filepath.Join(dir, "pid"), filepath.Join(dir, "stats"), filepath.Join(dir, "trace")
	object, err := os.Create(filepath.Join(dir, "json"))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(object.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	args := []string{"restore", "--pidfile", pidfile, "--stats", stats, "--trace-file", trace, "--json-fd", itoa(fd), "--background=none", "--changed-files=warn", "img"}
	if code := run(args, &bytes.Buffer{}, &stderr); code != 0 {
		t.Fatalf("exit code %d: %s", code, &stderr)
	}
	if opts.Background != lazyrestore.BackgroundNone || opts.ChangedFiles != lazyrestore.ChangedWarn || opts.Stdio != lazyrestore.StdioAuto {
		t.Errorf("options %+v", opts)
	}
	var result lazyrestore.RestoreResult
	readJSON(t, object.Name(), &result)
	var s lazyrestore.Stats
	readJSON(t, stats, &s)
	var recorded struct{ TraceEvents []any }
	readJSON(t, trace, &recorded)
	if opts.Trace == nil || !opts.Stages || len(recorded.TraceEvents) == 0 {
		t.Errorf("options %+v, trace %+v: want it recorded", opts, recorded)
	}
	if result.Mappings != 3 || s.Faults != 17 {
		t.Errorf("result %+v, statistics %+v", result, s)
	}
	if pid, err := os.ReadFile(pidfile); err != nil || string(pid) != itoa(result.PID)+"\n" {
		t.Errorf("pidfile %q, %v; want %d", pid, err, result.PID)
	}
}

func TestForegroundFailureIs125(t *testing.T) {
	real := restoreImage
	defer func() { restoreImage = real }()
	restoreImage = func(context.Context, string, lazyrestore.RestoreOptions) (process, error) { return nil, errRefused }

	dir := t.TempDir()
	object, err := os.Create(filepath.Join(dir, "json"))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(object.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	args := []string{"restore", "--pidfile", filepath.Join(dir, "pid"), "--stats", filepath.Join(dir, "stats"), "--json-fd", itoa(fd), "img"}
	if code := run(args, &bytes.Buffer{}, &stderr); code != verb.Ours {
		t.Errorf("exit code %d, want %d", code, verb.Ours)
	}
	if !strings.Contains(stderr.String(), "status 3: refused") || !strings.Contains(stderr.String(), "descriptor 8 (/dev/kvm)") {
		t.Errorf("message %q", &stderr)
	}
	var f verb.Failure
	readJSON(t, object.Name(), &f)
	if f.Code != verb.Refused || len(f.Reasons) != 2 {
		t.Errorf("JSON %+v", f)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v: want no pidfile, no statistics", entries, err)
	}
	if code := run([]string{"restore", "--dry-run", "img"}, &bytes.Buffer{}, &stderr); code != verb.Refused {
		t.Errorf("dry run: exit code %d, want %d", code, verb.Refused)
	}
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, v); err != nil {
		t.Fatalf("%s: %v in %q", path, err, text)
	}
}

// A signal that comes before this command knows of its process is not lost.
func TestEarlySignalsArePassedOn(t *testing.T) {
	signals, started, ended := make(chan os.Signal), make(chan *supervised), make(chan struct{})
	var interrupted error
	done := make(chan struct{})
	go func() {
		defer close(done)
		pass(signals, started, ended, func(cause error) { interrupted = cause })
	}()
	p := &signalled{}
	signals <- unix.SIGTERM
	started <- &supervised{process: p}
	signals <- unix.SIGUSR1
	close(ended)
	<-done
	if interrupted == nil {
		t.Error("SIGTERM does not interrupt the restore")
	}
	if want := []unix.Signal{unix.SIGTERM, unix.SIGUSR1}; !slices.Equal(p.got, want) {
		t.Errorf("the process got %v, want %v", p.got, want)
	}
}

// A signalled process notes its signals.
type signalled struct {
	fakeProcess
	got []unix.Signal
}

func (p *signalled) Signal(sig unix.Signal) error {
	p.got = append(p.got, sig)
	return nil
}

// A standard descriptor that the JSON object is written to stays open: its number
// must not become that of memory.
func TestJSONOnStandardErrorLeavesItOpen(t *testing.T) {
	fakeRestore(t, "exit 0")
	saved, err := unix.FcntlInt(2, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	object, err := os.Create(filepath.Join(t.TempDir(), "object"))
	if err == nil {
		err = unix.Dup3(int(object.Fd()), 2, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer object.Close()
	defer func() {
		if err := unix.Dup3(saved, 2, 0); err != nil {
			t.Error(err)
		}
		_ = unix.Close(saved)
	}()
	if code := run([]string{"restore", "--json-fd", "2", "img"}, &bytes.Buffer{}, &bytes.Buffer{}); code != 0 {
		t.Errorf("exit code %d", code)
	}
	var result lazyrestore.RestoreResult
	readJSON(t, object.Name(), &result)
	if _, err := unix.FcntlInt(2, unix.F_GETFD, 0); err != nil || result.Mappings != 3 {
		t.Errorf("result %+v; descriptor 2: %v", result, err)
	}
}
