// Package uffdtest is for tests alone. It starts children with missing pages,
// and it has the one helper of this module that decides whether a test may be
// skipped.
//
// A Go process must not touch missing memory that it serves itself: stopping
// the world waits for the goroutine in the fault, and the fault waits for a
// goroutine. So the memory is a child's. Start runs the test binary again;
// that child maps memory, registers it, sends the userfaultfd over a socket,
// and from then on obeys: each of its threads reads one request from its
// socket, does it with raw system calls and plain loads and stores, with all
// signals blocked, and answers. A request that faults is answered once the
// test has served the fault, so every request returns a *Reply at once, to be
// waited for later:
//
//	func TestMain(m *testing.M) { uffdtest.Main(m) }
//
//	func TestFault(t *testing.T) {
//		uffdtest.Need(t, "uffd")
//		c := uffdtest.Start(t, uffdtest.Options{Pages: 4})
//		r := c.Load(c.Addr(2))                  // the child waits now
//		msg := uffdtest.Next(t, c.FD)           // its fault
//		page := uffdtest.Pattern(2, c.PageSize) // some content
//		c.FD.Copy(msg.Fault().Addr, page, 0)
//		if got := r.Wait(t); got != uint64(page[0]) { ... }
//	}
//
// The child and all that it forked are gone when the test has ended.
package uffdtest
