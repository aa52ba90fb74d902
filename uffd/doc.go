// Package uffd is userfaultfd(2): memory whose page faults are handled by a
// program. It owns the kernel's interface, all of it, and nothing else: no
// goroutines, no policy, no idea of where pages come from.
//
// # The way of a fault
//
// A process opens a descriptor for its own memory (Open), says what it wants
// of it (Enable), and registers ranges (Register). Mostly it then hands the
// descriptor to another process (SendFD, ReceiveFD; or pidfd_getfd(2) and
// FromFD), for a handler must not be stopped by the faults that it is to
// resolve. From then on
//
//	a thread touches a page that is missing      and sleeps
//	Read delivers a Msg: a Fault with its address
//	Copy installs the page, and wakes the thread
//
// The same for pages that are to be zero (Zero), that are in the page cache
// (Continue, after ModeMinor), that can be moved (Move), that cannot be had
// (Poison), and for writes to protected pages (WriteProtect). Pages may be
// installed before anybody asks for them; who comes second is told EEXIST.
//
// The process does not stand still meanwhile. With the features of their names
// enabled, its forks, and what it moves, drops and unmaps, come as events.
// Such an event blocks its thread until it is read, and until then Copy answers
// EAGAIN: so whoever reads must never wait for a copy, and a copy that is told
// EAGAIN has to let the reader read. Once an event is read the change is made:
// a page that was on its way to that range must not be installed any more.
//
// # Rules that the compiler does not know
//
// Closing the last reference to a descriptor ends the lazy memory: waiting
// threads wake, and every page not there yet reads as zeros, without a signal
// or a message. Keep a second reference somewhere that survives the handler.
// This package never closes a descriptor by itself.
//
// A Go process must not touch missing memory that it handles itself: to stop
// the world the runtime waits for the goroutine in the fault, which waits for
// a goroutine that has been stopped. Touch it from another process, or by a
// system call that the runtime knows about, such as madvise(2) with
// MADV_POPULATE_READ. Package uffdtest makes such processes for tests.
//
// The source of a Copy is an address inside a struct, which neither the
// garbage collector nor a moving stack knows of. Copy takes care of it: what it
// is given lives on the heap, and is kept until the kernel is done.
//
// # Concurrency
//
// All methods of FD may be called at once, from any number of processes that
// share it, but for Close, which comes last. Each Msg is delivered to one
// reader only.
//
// # Errors
//
// Operations give an *Error with the range and an errno that errors.Is finds;
// each method says what its errnos mean. A kernel that is too old for a feature
// gives a *NotSupportedError that says since when there is one. Probe tells in
// advance.
//
// The interface is described in userfaultfd(2), ioctl_userfaultfd(2) and
// Documentation/admin-guide/mm/userfaultfd.rst of the kernel.
package uffd
