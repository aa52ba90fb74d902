package workload_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/bench/workload"
)

// A program gives the same result each time: else a test that compares the
// result of a restored one would prove nothing.
func TestResultsRepeat(t *testing.T) {
	builder := &workload.Builder{Dir: t.TempDir()}
	ctx := t.Context()
	programs := map[string]func() (*workload.Program, error){
		"threads": func() (*workload.Program, error) { return builder.Threads(ctx, 4) },
		"gcload":  func() (*workload.Program, error) { return builder.GCLoad(ctx, 8, 8) },
	}
	for name, make := range programs {
		t.Run(name, func(t *testing.T) {
			program, err := make()
			if err != nil {
				t.Fatal(err)
			}
			first, second := runToEnd(ctx, t, program), runToEnd(ctx, t, program)
			if len(first) != 1 || !slices.Equal(first, second) {
				t.Errorf("results %q and %q, want one line, the same", first, second)
			}
		})
	}
}

func runToEnd(ctx context.Context, t *testing.T, program *workload.Program) []string {
	t.Helper()
	process, err := program.Start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer process.Kill()
	if err := process.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-process.Ended():
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	if code := process.ExitCode(); code != 0 {
		t.Fatalf("exit code %d, output %q", code, process.Output())
	}
	return process.Result()
}

// What a program has started ends with it.
func TestKillEndsChildren(t *testing.T) {
	program := &workload.Program{
		Name: "parent", Args: []string{"/bin/sh", "-c", "sleep 600 & echo $!; wait"},
		Ready: regexp.MustCompile(`(?m)^\d+$`), Result: regexp.MustCompile(`(?m)^\d+$`),
	}
	process, err := program.Start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer process.Kill()
	if err := process.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(process.Result()[0])
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(child, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	process.Kill()
	ended := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	if n, err := unix.Poll(ended, 10_000); n != 1 {
		_ = syscall.Kill(child, syscall.SIGKILL)
		t.Errorf("the child lives on (%v)", err)
	}
}

func TestMappingsTouchesAndVerifies(t *testing.T) {
	builder := &workload.Builder{Dir: t.TempDir()}
	ctx := t.Context()
	program, err := builder.Mappings(ctx, workload.MappingsOptions{Mappings: 7, MiB: 9, Touches: 20})
	if err != nil {
		t.Fatal(err)
	}
	process, err := program.Start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer process.Kill()
	if err := process.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGUSR2} {
		if err := syscall.Kill(process.Pid, sig); err != nil {
			t.Fatal(err)
		}
		if sig == syscall.SIGUSR1 {
			waitFor(ctx, t, func() bool { return len(process.Result()) == 1 })
		}
	}
	select {
	case <-process.Ended():
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	if got := process.Result(); !slices.Equal(got, []string{"result ok"}) {
		t.Errorf("result %q", got)
	}
}

// Each line is written when it is there: who waits for one is not made to wait
// for those behind it. A pipe of packets shows what was written at once.
func TestMappingsWritesEachLine(t *testing.T) {
	program, err := (&workload.Builder{Dir: t.TempDir()}).Mappings(t.Context(), workload.MappingsOptions{Mappings: 2, MiB: 1, Touches: 5})
	if err != nil {
		t.Fatal(err)
	}
	fds := make([]int, 2)
	if err := syscall.Pipe2(fds, syscall.O_DIRECT|syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	stdout, theirs := os.NewFile(uintptr(fds[0]), "stdout"), os.NewFile(uintptr(fds[1]), "their stdout")
	defer stdout.Close()
	cmd := exec.CommandContext(t.Context(), program.Args[0], program.Args[1:]...)
	cmd.Dir, cmd.Stdout = t.TempDir(), theirs
	if err := errors.Join(cmd.Start(), theirs.Close()); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	packet := make([]byte, 4096)
	for _, word := range []string{"ready", "touches n=5 ", "sweep bytes=1048576 ", "result ok"} {
		n, err := stdout.Read(packet)
		if line := string(packet[:n]); err != nil || !strings.HasPrefix(line, word) || strings.Count(line, "\n") != 1 {
			t.Fatalf("written at once: %q, %v; want a line with %q alone", line, err, word)
		}
		if word == "ready" {
			if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A program that ends before it is ready is an error, not a wait.
func TestReadyOfAProgramThatEnds(t *testing.T) {
	program := &workload.Program{Name: "false", Args: []string{"/bin/false"}}
	ready, err := (&workload.Builder{Dir: t.TempDir()}).Threads(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	program.Ready = ready.Ready
	process, err := program.Start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Ready(t.Context()); err == nil {
		t.Error("no error")
	}
}

// A descriptor that the caller was handed is not handed on: the program would
// have a pipe whose other end is outside.
func TestStartHandsOnNoDescriptors(t *testing.T) {
	fds := make([]int, 2)
	if err := syscall.Pipe(fds); err != nil { // without O_CLOEXEC
		t.Fatal(err)
	}
	defer syscall.Close(fds[0])
	defer syscall.Close(fds[1])
	program := &workload.Program{
		Name: "ls", Args: []string{"/bin/sh", "-c", "ls /proc/$$/fd; echo result"},
		Ready: regexp.MustCompile("result"), Result: regexp.MustCompile(`(?m)^[0-9]+$`),
	}
	process, err := program.Start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-process.Ended()
	if got, want := process.Result(), []string{"0", "1", "2"}; !slices.Equal(got, want) {
		t.Errorf("descriptors %v, want %v", got, want)
	}
}

func waitFor(ctx context.Context, t *testing.T, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		}
	}
}
