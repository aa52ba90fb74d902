package main

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

// The first collection comes late, those after it as ever.
func TestCollectLate(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	collectLate()
	if percent := debug.SetGCPercent(firstCollection); percent != firstCollection {
		t.Errorf("before the first collection: %d percent, want %d", percent, firstCollection)
	}
	deadline := time.Now().Add(10 * time.Second)
	percent := firstCollection
	for percent != 100 && time.Now().Before(deadline) {
		runtime.GC() // what it finds is finalized beside
		if percent = debug.SetGCPercent(100); percent != 100 {
			debug.SetGCPercent(percent)
		}
	}
	if percent != 100 {
		t.Errorf("after it: %d percent, want 100", percent)
	}
}
