package lazyrestore

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/native"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
)

// Checkpoint writes an image of process pid to the directory opts.Dir. The
// process stands still from the moment its state is read until the image is
// committed, and is ended then; where opts.LeaveRunning says so, it runs on as
// soon as its memory has been read.
// Whenever Checkpoint returns an error the process runs on, and there is
// nothing at opts.Dir.
//
// Errors: *RefusedError where an image cannot hold the process, with all the
// reasons; *FacilityError where this user may not trace it; else errors of the
// file system.
func Checkpoint(ctx context.Context, pid int, opts CheckpointOptions) (*CheckpointResult, error) {
	begin := time.Now()
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	spec, err := chunk.ParseSpec(cmp.Or(opts.Codec, "zstd"))
	if err != nil {
		return nil, err
	}
	owed, err := owedPages(ctx, pid, &opts)
	if err != nil {
		return nil, err
	}
	defer owed.close()

	frozenAt := time.Now()
	frozen, err := owed.freeze(ctx)
	if err != nil {
		return nil, explainFreeze(pid, err)
	}
	defer frozen.Release()
	frozen.Ends = !opts.LeaveRunning
	opts.Logger.Info("the process stands still", "pid", pid, "took", time.Since(frozenAt))
	if err := owed.refresh(ctx); err != nil {
		return nil, err
	}
	opts.Logger.Debug("memory that a restore still owes", "mappings", len(owed.mappings), "shared", len(owed.parts))
	captureAt := time.Now()
	if err := frozen.Capture(ctx, native.Owed{Missing: owed.mappings, Parts: owed.parts, Unknown: owed.unknown, Killed: owed.killed}); err != nil {
		return nil, explainCapture(err)
	}
	res := &CheckpointResult{Image: opts.Dir, Threads: frozen.Threads(), Mappings: frozen.Mappings(), Warnings: frozen.Warnings()}
	lazy, eager := frozen.Bytes()
	opts.Logger.Info("its state is known", "threads", res.Threads, "mappings", res.Mappings, "descriptors", frozen.Descriptors(),
		"lazy_bytes", lazy, "eager_bytes", eager, "took", time.Since(captureAt))
	if opts.DryRun {
		res.LazyBytes, res.EagerBytes = lazy, eager
		res.MemoryBytes = res.LazyBytes + res.EagerBytes
		return res, nil
	}
	if err := checkSpace(opts.Dir, eager, lazy, spec.Codec != chunk.None); err != nil {
		return nil, err
	}
	// A process that runs on does not wait for what is written of it.
	read := func() {
		if opts.LeaveRunning {
			frozen.Thaw()
			res.FrozenMS = milliseconds(time.Since(frozenAt))
			opts.Logger.Info("the process runs on", "stood_still", time.Since(frozenAt))
		}
	}
	if err := writeImage(ctx, frozen, owed, spec, &opts, read, res); err != nil {
		return nil, err
	}
	if !opts.LeaveRunning {
		if missed := frozen.Missed(); len(missed) > 0 {
			res.Warnings = append(res.Warnings, "signals that came when the image had been written, and that the restored process does not get: "+strings.Join(missed, ", "))
		}
		if err := frozen.Kill(); err != nil {
			return nil, fmt.Errorf("end process %d: %w", pid, err)
		}
		res.FrozenMS = milliseconds(time.Since(frozenAt))
		opts.Logger.Info("the process has been ended", "stood_still", time.Since(frozenAt))
	}
	res.TotalMS = milliseconds(time.Since(begin))
	return res, nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// writeImage writes and commits the image of a frozen process. read is called
// when nothing more of the process is looked at.
func writeImage(ctx context.Context, frozen *native.Frozen, owed *owed, spec chunk.Spec, opts *CheckpointOptions, read func(), res *CheckpointResult) (err error) {
	dir, err := store.CreateDir(opts.Dir)
	if err != nil {
		return err
	}
	committed := false
	defer func() {
		if !committed {
			dir.Abort()
		}
	}()
	w, err := image.NewWriter(dir, image.WriterOptions{Spec: spec, ChunkSize: opts.ChunkSize, Workers: opts.Workers})
	if err != nil {
		return err
	}
	finished := false
	defer func() {
		if !finished {
			w.Abort()
		}
	}()
	thread.MakeRoom(w.Workers())
	report := newReporter(opts.Progress, "write")
	opts.Logger.Debug("writing", "image", opts.Dir, "codec", spec.String(), "chunk_size", w.ChunkSize(), "workers", w.Workers())
	dumpAt := time.Now()
	err = frozen.Dump(ctx, w, native.DumpOptions{Missing: owed.reader(), Progress: report.at, Last: !opts.LeaveRunning})
	if err != nil {
		return err
	}
	opts.Logger.Info("its memory has been read", "took", time.Since(dumpAt))
	read()
	finishAt := time.Now()
	done, err := w.Finish(ctx, frozen.Manifest())
	finished = true
	if err != nil {
		return err
	}
	if err := dir.Commit(); err != nil {
		return err
	}
	committed = true
	report.end()
	m := done.Manifest.Process
	res.Digest = done.Digest
	res.MemoryBytes, res.ZeroBytes, res.StoredBytes = m.MemoryBytes, m.ZeroBytes, m.StoredBytes
	res.LazyBytes, res.EagerBytes = m.LazyBytes, m.EagerBytes
	opts.Logger.Info("the image is on the disk", "image", opts.Dir, "digest", res.Digest, "zero_bytes", m.ZeroBytes, "stored_bytes", m.StoredBytes,
		"took", time.Since(finishAt))
	return nil
}
