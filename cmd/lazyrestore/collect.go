package main

import (
	"os"
	"runtime"
	"runtime/debug"
)

// firstCollection is the heap with which garbage is first collected, in percent
// of Go's 4 MiB. Most restores need less until all is resident; a collection takes
// them a millisecond or two of each processor, when the program needs them most.
const firstCollection = 400

// collectLate puts off the first garbage collection; those after it come as ever.
// Whoever sets GOGC knows better.
func collectLate() {
	if os.Getenv("GOGC") != "" {
		return
	}
	debug.SetGCPercent(firstCollection)
	runtime.SetFinalizer(new([64]byte), func(*[64]byte) { debug.SetGCPercent(100) })
}
