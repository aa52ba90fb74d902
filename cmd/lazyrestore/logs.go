package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// How long logs are kept whose process has ended: those in which something stands, and
// empty ones of restores that were killed before they had a process.
const (
	keepLog       = 7 * 24 * time.Hour
	keepUnclaimed = 24 * time.Hour
)

// sweepLogs removes the logs of detached restores whose processes have ended, which
// nobody else does: a process may write to its log when its pager has left.
func sweepLogs(dir string) {
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		return
	}
	for _, path := range logs {
		info, err := os.Lstat(path)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		keep := keepUnclaimed
		if pid, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(path), ".log")); err == nil {
			if !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
				continue
			}
			keep = 0
		}
		if info.Size() > 0 {
			keep = keepLog
		}
		if time.Since(info.ModTime()) >= keep {
			os.Remove(path)
		}
	}
}
