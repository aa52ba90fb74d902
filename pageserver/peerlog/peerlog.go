// Package peerlog is the log of a server whose peers cannot fill a disk with it.
package peerlog

import (
	"log/slog"
	"sync"
	"time"
)

// A Log lets peers write only so much: what they do wrong is logged, but not a disk
// full of it. Its other methods are the Logger's, without a limit.
type Log struct {
	*slog.Logger

	mu      sync.Mutex
	since   time.Time // under mu
	written int       // under mu: since then
	left    int       // under mu: left out since then
}

// LinesPerSecond is how many warnings and notes about peers are logged.
const LinesPerSecond = 20

// New makes a Log that writes to l.
func New(l *slog.Logger) *Log { return &Log{Logger: l} }

// allow reports whether a line may be written, and how many were left out
// before it.
func (l *Log) allow(now time.Time) (ok bool, leftOut int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.since) >= time.Second {
		l.since, l.written = now, 0
		leftOut, l.left = l.left, 0
	}
	if l.written >= LinesPerSecond {
		l.left++
		return false, 0
	}
	l.written++
	return true, leftOut
}

// Warn logs a warning, unless there were too many.
func (l *Log) Warn(msg string, args ...any) { l.log(l.Logger.Warn, msg, args) }

// Info logs a note, unless there were too many.
func (l *Log) Info(msg string, args ...any) { l.log(l.Logger.Info, msg, args) }

func (l *Log) log(write func(string, ...any), msg string, args []any) {
	ok, leftOut := l.allow(time.Now())
	if leftOut > 0 {
		l.Logger.Warn("lines left out", "count", leftOut)
	}
	if ok {
		write(msg, args...)
	}
}
