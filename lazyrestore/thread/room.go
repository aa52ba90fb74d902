package thread

import "runtime"

// MakeRoom has Go run as many goroutines at a time as are kept busy, and one
// more, in the whole program. With fewer one that is back from a system call
// waits for another to be done with its slice of 10 ms, and whenever a call takes its time
// Go moves goroutines from thread to thread, and has a thread that looks for
// such calls each 20 µs. Where it is told to run one at a time it does.
func MakeRoom(busy int) {
	if have := runtime.GOMAXPROCS(0); have > 1 && have <= busy {
		runtime.GOMAXPROCS(busy + 1)
	}
}
