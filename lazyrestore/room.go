package lazyrestore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/native"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// checkSpace refuses a checkpoint for which the disk is too small even if the
// memory shrinks well: to find that out at the end would have cost the process
// its time. What memory shrinks to is not known before; a disk that turns out
// too small all the same ends the checkpoint, and the process runs on.
func checkSpace(dir string, eager, lazy uint64, compresses bool) error {
	const goodRatio = 8
	need := eager + lazy
	if compresses {
		need = eager + lazy/goodRatio
	}
	var fs unix.Statfs_t
	parent := filepath.Dir(filepath.Clean(dir))
	if err := unix.Statfs(parent, &fs); err != nil {
		return &os.PathError{Op: "create image in", Path: parent, Err: err}
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < need {
		return fmt.Errorf("write image %s: it needs %s at least, and %s are free: %w", dir, mib(need), mib(free), unix.ENOSPC)
	}
	return nil
}

// checkMemory refuses a restore whose process cannot fit into memory.
func checkMemory(st *native.State) error {
	need := st.LazyBytes + st.EagerBytes
	info, err := proc.ReadMeminfo()
	if err != nil {
		return err
	}
	if have := info.Available + info.SwapFree; have < need {
		return &RefusedError{Reasons: []Reason{{
			What: "memory", Why: fmt.Sprintf("the process needs %s, and %s are available", mib(need), mib(have)),
			Help: "end other programs, or restore on a larger machine",
		}}}
	}
	have, limited, err := proc.MemoryHeadroom(unix.Getpid())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if limited && have < need {
		return &RefusedError{Reasons: []Reason{{
			What: "the cgroup's memory limit", Why: fmt.Sprintf("the process needs %s, and %s are left of it", mib(need), mib(have)),
			Help: "ask for more memory for the job",
		}}}
	}
	return nil
}

func mib(n uint64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
