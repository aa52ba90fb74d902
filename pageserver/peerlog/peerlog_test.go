package peerlog

import (
	"log/slog"
	"strings"
	"testing"
	"time"
)

// What peers do wrong is logged, but not without bound.
func TestLogIsBounded(t *testing.T) {
	var b strings.Builder
	l := New(slog.New(slog.NewTextHandler(&b, nil)))
	for range 1000 {
		l.Warn("a client misbehaves")
	}
	if n := strings.Count(b.String(), "misbehaves"); n != LinesPerSecond {
		t.Errorf("%d lines, want %d", n, LinesPerSecond)
	}
	l.since = l.since.Add(-time.Hour)
	l.Warn("a client misbehaves")
	if !strings.Contains(b.String(), "count=980") {
		t.Errorf("it does not say how many were left out: %s", b.String()[max(0, b.Len()-300):])
	}
}
