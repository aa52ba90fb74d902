package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os/signal"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

func itoa(n int) string { return strconv.Itoa(n) }

func fakeCheckpoint(t *testing.T, result *lazyrestore.CheckpointResult, err error) (opts *lazyrestore.CheckpointOptions) {
	t.Helper()
	opts = new(lazyrestore.CheckpointOptions)
	real := checkpointProcess
	t.Cleanup(func() { checkpointProcess = real })
	checkpointProcess = func(_ context.Context, _ int, o lazyrestore.CheckpointOptions) (*lazyrestore.CheckpointResult, error) {
		*opts = o
		return result, err
	}
	return opts
}

func TestCheckpointFlagsBecomeOptions(t *testing.T) {
	opts := fakeCheckpoint(t, &lazyrestore.CheckpointResult{}, nil)
	var stdout, stderr bytes.Buffer
	if code := run([]string{"checkpoint", "4711"}, &stdout, &stderr); code != 0 {
		t.Fatalf("exit code %d: %s", code, &stderr)
	}
	if opts.Dir != "./lazyrestore-4711" || opts.Codec != "zstd:1" || opts.ChunkSize != 64<<10 || opts.LeaveRunning || opts.DryRun {
		t.Errorf("without flags: %+v", opts)
	}
	args := []string{"checkpoint", "-RnD", "/x/%p", "--codec=lz4", "--chunk-size", "1MiB", "--workers=3", "-q", "4711"}
	if code := run(args, &stdout, &stderr); code != 0 {
		t.Fatalf("exit code %d: %s", code, &stderr)
	}
	if opts.Dir != "/x/4711" || opts.Codec != "lz4" || opts.ChunkSize != 1<<20 || opts.Workers != 3 || !opts.LeaveRunning || !opts.DryRun || opts.Progress != nil {
		t.Errorf("%q: %+v", args, opts)
	}
}

func TestCheckpointReports(t *testing.T) {
	fakeCheckpoint(t, &lazyrestore.CheckpointResult{
		Image: "img", Digest: "sha256:ab", FrozenMS: 14.2, TotalMS: 812, MemoryBytes: 670 << 20, ZeroBytes: 20 << 20, StoredBytes: 255 << 20,
		Threads: 2, Mappings: 580, Warnings: []string{"a log grows"},
	}, nil)
	var stdout, stderr bytes.Buffer
	if code := run([]string{"checkpoint", "4711"}, &stdout, &stderr); code != 0 {
		t.Fatalf("exit code %d: %s", code, &stderr)
	}
	want := "process 4711: 670 MiB in 580 mappings, 2 threads\n" +
		"image img: 255 MiB stored, 20 MiB zero, in 812 ms; the process stood still for 14 ms\ndigest sha256:ab\n"
	if stdout.String() != want || stderr.String() != "lazyrestore: warning: a log grows\n" {
		t.Errorf("stdout %q, stderr %q", &stdout, &stderr)
	}

	stdout.Reset()
	if code := run([]string{"checkpoint", "--json", "4711"}, &stdout, &stderr); code != 0 {
		t.Fatalf("exit code %d: %s", code, &stderr)
	}
	var got map[string]any
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"image", "digest", "frozen_ms", "total_ms", "memory_bytes", "zero_bytes", "stored_bytes", "threads", "mappings"} {
		if _, ok := got[name]; !ok {
			t.Errorf("the JSON object has no %s: %s", name, &stdout)
		}
	}
}

var errRefused = &lazyrestore.RefusedError{Reasons: []lazyrestore.Reason{
	{What: "descriptor 7 (socket:[12])", Why: "a TCP connection", Help: "close it"},
	{What: "descriptor 8 (/dev/kvm)", Why: "a device"},
}}

func TestCheckpointRefusedAsJSON(t *testing.T) {
	fakeCheckpoint(t, nil, errRefused)
	var stdout, stderr bytes.Buffer
	if code := run([]string{"checkpoint", "--json", "4711"}, &stdout, &stderr); code != verb.Refused {
		t.Errorf("exit code %d, want %d", code, verb.Refused)
	}
	var f verb.Failure
	if err := json.Unmarshal(stdout.Bytes(), &f); err != nil {
		t.Fatal(err)
	}
	if f.Code != verb.Refused || f.Status != "refused" || len(f.Reasons) != 2 || !strings.HasPrefix(f.Error, "process 4711: ") {
		t.Errorf("JSON %+v", f)
	}
	if !strings.Contains(stderr.String(), "\n  descriptor 8 (/dev/kvm): a device\n") {
		t.Errorf("message %q", &stderr)
	}
}

// Whatever a terminal or a scheduler ends a checkpoint with, it is given up in order: with the
// code of a failure, and no image that another one has to clear away.
func TestCheckpointIsInterrupted(t *testing.T) {
	real := checkpointProcess
	t.Cleanup(func() { checkpointProcess = real })
	for _, sig := range []unix.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP} {
		if signal.Ignored(sig) {
			continue // as this test was started, the command goes on ignoring it
		}
		checkpointProcess = func(ctx context.Context, _ int, _ lazyrestore.CheckpointOptions) (*lazyrestore.CheckpointResult, error) {
			if err := unix.Kill(unix.Getpid(), sig); err != nil {
				return nil, err
			}
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}
		if code := run([]string{"checkpoint", "4711"}, &bytes.Buffer{}, &bytes.Buffer{}); code != verb.Failed {
			t.Errorf("%v: exit code %d, want %d", sig, code, verb.Failed)
		}
	}
}
