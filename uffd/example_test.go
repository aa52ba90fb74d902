package uffd_test

import (
	"bytes"
	"errors"
	"fmt"
	"log"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd"
)

// A range of this process is filled on demand, by a goroutine. The touch is a
// system call: a goroutine that touched missing memory itself could hang the
// process, see the package comment.
func Example() {
	pageSize := unix.Getpagesize()
	mem, err := unix.Mmap(-1, 0, 4*pageSize, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mem) }()

	f, err := uffd.Open(uffd.CloseOnExec)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Enable(uffd.FeatureThreadID); err != nil {
		log.Fatal(err)
	}
	start := address(mem)
	if _, err := f.Register(start, uint64(len(mem)), uffd.ModeMissing); err != nil {
		log.Fatal(err)
	}

	done := make(chan error)
	go func() { done <- handle(f, start, pageSize) }()
	if err := unix.Madvise(mem[2*pageSize:3*pageSize], unix.MADV_POPULATE_READ); err != nil {
		log.Fatal(err)
	}
	if err := <-done; err != nil {
		log.Fatal(err)
	}
	fmt.Printf("page 2 holds %.9q\n", mem[2*pageSize:3*pageSize])
	// Output:
	// fault on page 2
	// page 2 holds "page two "
}

// handle resolves one fault.
func handle(f *uffd.FD, start uint64, pageSize int) error {
	msgs := make([]uffd.Msg, 1)
	if _, err := f.Read(msgs); err != nil {
		return err
	}
	if msgs[0].Event() != uffd.EventPagefault {
		return fmt.Errorf("unexpected message: %v", &msgs[0])
	}
	addr := msgs[0].Fault().Addr
	fmt.Printf("fault on page %d\n", (addr-start)/uint64(pageSize))
	page := bytes.Repeat([]byte("page two "), pageSize/9+1)[:pageSize]
	_, err := f.Copy(addr, page, 0)
	return err
}

// The errno tells what became of a copy.
func ExampleFD_Copy() {
	mem, err := unix.Mmap(-1, 0, unix.Getpagesize(), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mem) }()
	f, err := uffd.Open(uffd.CloseOnExec)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Enable(0); err != nil {
		log.Fatal(err)
	}
	start, length := address(mem), uint64(len(mem))
	if _, err := f.Register(start, length, uffd.ModeMissing); err != nil {
		log.Fatal(err)
	}

	page := bytes.Repeat([]byte{7}, len(mem))
	for range 2 {
		n, err := f.Copy(start, page, 0)
		switch {
		case err == nil:
			fmt.Println("installed", n == int64(length), mem[0])
		case errors.Is(err, unix.EEXIST):
			fmt.Println("already present")
		case errors.Is(err, unix.EAGAIN):
			fmt.Println("read events, then try the rest")
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
			fmt.Println("the range, or the process, is gone")
		default:
			log.Fatal(err)
		}
	}
	// Output:
	// installed true 7
	// already present
}

// A feature that no kernel has, to see the error.
func ExampleFD_Enable() {
	f, err := uffd.Open(uffd.CloseOnExec)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	_, err = f.Enable(uffd.FeatureThreadID | 1<<62)
	var missing *uffd.NotSupportedError
	if errors.As(err, &missing) {
		fmt.Println("missing:", missing.Feature)
	}
	// Output: missing: 0x4000000000000000
}

// A descriptor goes to another process over a unix socket.
func ExampleSendFD() {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		log.Fatal(err)
	}
	defer func() {
		_ = unix.Close(pair[0])
		_ = unix.Close(pair[1])
	}()
	f, err := uffd.Open(uffd.CloseOnExec | uffd.NonBlock)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := uffd.SendFD(pair[0], f, []byte("pid 4711")); err != nil {
		log.Fatal(err)
	}

	payload := make([]byte, 64)
	received, n, err := uffd.ReceiveFD(pair[1], payload)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = received.Close() }()
	fmt.Printf("a userfaultfd, and %q\n", payload[:n])
	// Output: a userfaultfd, and "pid 4711"
}

// What a kernel offers, and what it would take.
func ExampleProbe() {
	support := uffd.Probe()
	if !support.Usable() {
		log.Fatal(support.Syscall)
	}
	for feature := range (uffd.KnownFeatures &^ support.Features).Each {
		log.Printf("%v needs Linux %s", feature, feature.Since())
	}
	fmt.Println("shared memory:", support.Features.Has(uffd.FeatureMissingShmem))
	fmt.Println(strings.ToLower((uffd.FeaturePoison | uffd.FeatureMove).String()), "since", uffd.FeatureMove.Since())
	// Output:
	// shared memory: true
	// poison|move since 6.8
}
