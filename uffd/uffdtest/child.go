package uffdtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd"
)

// childEnv makes a test binary a child of Start: its value is the JSON of
// Options. The descriptors that Start leaves to it begin at controlFD: the
// socket that the userfaultfd is sent over, one socket a thread, and one for
// each process that may be forked.
const (
	childEnv  = "LAZYRESTORE_UFFDTEST_CHILD"
	controlFD = 3
	threadFD  = 4
)

// hello is what the child sends along with its userfaultfd, or instead of it.
type hello struct {
	Start uint64
	Err   string
}

// BeChild makes this process what Start started it for, and never returns; in
// any other process it does nothing. Main calls it. A TestMain of another
// shape calls it first.
func BeChild() {
	config, ok := os.LookupEnv(childEnv)
	if !ok {
		return
	}
	var o Options
	if err := json.Unmarshal([]byte(config), &o); err != nil {
		fmt.Fprintf(os.Stderr, "uffdtest: parse %s: %v\n", childEnv, err)
		os.Exit(2)
	}
	if err := o.prepare(); err != nil {
		greeting, _ := json.Marshal(hello{Err: err.Error()})
		_ = unix.Sendto(controlFD, greeting, 0, nil)
		os.Exit(2)
	}
	// Each thread keeps its P for good, as obey makes raw system calls.
	runtime.GOMAXPROCS(o.Threads + 1)
	for i := 1; i < o.Threads; i++ {
		go func() {
			runtime.LockOSThread()
			obey(uintptr(threadFD + i))
		}()
	}
	runtime.LockOSThread()
	obey(threadFD)
}

// prepare maps and registers the memory and sends its userfaultfd away.
func (o *Options) prepare() error {
	start, err := o.mapAll()
	if err != nil {
		return fmt.Errorf("map %d pages: %w", o.Pages, err)
	}
	f, err := uffd.Open(o.Open)
	if err != nil {
		return err
	}
	if _, err := f.Enable(o.Features); err != nil {
		return err
	}
	if !o.Unregistered {
		if _, err := f.Register(start, o.length(), o.Mode); err != nil {
			return err
		}
	}
	greeting, err := json.Marshal(hello{Start: start})
	if err != nil {
		return err
	}
	if err := uffd.SendFD(controlFD, f, greeting); err != nil {
		return err
	}
	if err := unix.Close(controlFD); err != nil {
		return err
	}
	if o.KeepFD {
		return nil
	}
	return f.Close()
}

// mapAll maps the memory, of the kind that is asked for, without touching it.
func (o *Options) mapAll() (uint64, error) {
	flags, fd := unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1
	switch o.Kind {
	case Anonymous:
	case Shmem:
		var err error
		if fd, err = unix.MemfdCreate("uffdtest", unix.MFD_CLOEXEC); err != nil {
			return 0, err
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.Ftruncate(fd, int64(o.length())); err != nil {
			return 0, err
		}
		flags = unix.MAP_SHARED
	case Hugetlb:
		flags |= unix.MAP_HUGETLB | unix.MAP_HUGE_2MB
	case HugetlbShared:
		flags = unix.MAP_SHARED | unix.MAP_ANONYMOUS | unix.MAP_HUGETLB | unix.MAP_HUGE_2MB
	default:
		return 0, fmt.Errorf("kind %d: %w", o.Kind, errors.ErrUnsupported)
	}
	return mapMemory(o.length(), flags, fd)
}
