package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestSweepLogs(t *testing.T) {
	dir := t.TempDir()
	gone := "4194305" // above the largest pid
	tests := []struct {
		name, text string
		age        time.Duration
		stays      bool
	}{
		{gone + ".log", "", 0, false},
		{"4194306.log", "it went wrong\n", 24 * time.Hour, true},
		{"4194307.log", "it went wrong\n", 8 * 24 * time.Hour, false},
		{itoa(os.Getpid()) + ".log", "", 8 * 24 * time.Hour, true},
		{"restore-1.log", "", time.Hour, true},
		{"restore-2.log", "", 25 * time.Hour, false},
		{"restore-3.log", "killed\n", 25 * time.Hour, true},
		{gone + ".sock", "", 8 * 24 * time.Hour, true},
	}
	for _, tt := range tests {
		path := filepath.Join(dir, tt.name)
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		then := time.Now().Add(-tt.age)
		if err := os.Chtimes(path, then, then); err != nil {
			t.Fatal(err)
		}
	}
	sweepLogs(dir)
	for _, tt := range tests {
		if _, err := os.Lstat(filepath.Join(dir, tt.name)); (err == nil) != tt.stays {
			t.Errorf("%s, %q, %v old: %v, want it to stay: %v", tt.name, tt.text, tt.age, err, tt.stays)
		}
	}
}
