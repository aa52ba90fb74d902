package uffdtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd"
)

// RequireEnv names the environment variable that lists facilities, separated
// by commas, whose absence fails a test instead of skipping it; "all" lists
// them all.
const RequireEnv = "LAZYRESTORE_TEST_REQUIRE"

// facilities are what Need knows by name. Each probe runs once in a process.
var facilities = map[string]func() error{
	"uffd":         sync.OnceValue(probeUffd),
	"ptrace":       sync.OnceValue(probePtrace),
	"root":         sync.OnceValue(probeRoot),
	"pagemap_scan": sync.OnceValue(probePagemapScan),
	"hugetlb":      sync.OnceValue(probeHugetlb),
	"userns":       sync.OnceValue(probeUserns),
}

// Need skips the test unless the machine has each facility, or fails it where
// RequireEnv lists that facility:
//
//	uffd            a userfaultfd that serves whole processes, with fork events
//	ptrace          tracing a child
//	root            an effective user id of 0
//	pagemap_scan    the ioctl PAGEMAP_SCAN (Linux 6.7)
//	hugetlb         two free huge pages of 2 MiB
//	userns          making user namespaces
//	FEATURE         a feature of userfaultfd in the kernel's words, say "MOVE"
//	cmd:NAME        a command in PATH, say "cmd:gcc"; "criu" is "cmd:criu"
//
// Any other name fails the test.
func Need(t testing.TB, facility ...string) {
	t.Helper()
	for _, name := range facility {
		probe, err := lookup(name)
		if err != nil {
			t.Fatal(err)
		}
		NeedFunc(t, name, probe)
	}
}

// NeedFunc is Need for a facility that only one package knows: probe says why
// it is missing, nil if it is there.
func NeedFunc(t testing.TB, name string, probe func() error) {
	t.Helper()
	err := probe()
	switch {
	case err == nil:
	case Required(name):
		t.Fatalf("this machine lacks %s, which %s requires: %v", name, RequireEnv, err)
	default:
		t.Skipf("this machine lacks %s: %v", name, err)
	}
}

// Required reports whether RequireEnv lists the facility.
func Required(name string) bool {
	for listed := range strings.SplitSeq(os.Getenv(RequireEnv), ",") {
		if listed = strings.TrimSpace(listed); listed == name || listed == "all" {
			return true
		}
	}
	return false
}

// lookup finds the probe of a facility.
func lookup(name string) (func() error, error) {
	if probe, ok := facilities[name]; ok {
		return probe, nil
	}
	if name == "criu" {
		name = "cmd:criu"
	}
	if command, ok := strings.CutPrefix(name, "cmd:"); ok {
		return func() error {
			_, err := exec.LookPath(command)
			return err
		}, nil
	}
	for feature := range uffd.KnownFeatures.Each {
		if feature.String() == name {
			return func() error { return probeFeature(feature) }, nil
		}
	}
	return nil, fmt.Errorf("uffdtest.Need: no facility has the name %q", name)
}

func probeUffd() error {
	s := uffd.Probe()
	if !s.Usable() {
		return &uffd.OpenError{Device: s.Device, Syscall: s.Syscall}
	}
	return s.ForkEvents
}

func probeFeature(want uffd.Features) error {
	if err := facilities["uffd"](); err != nil {
		return err
	}
	if s := uffd.Probe(); !s.Features.Has(want) {
		return &uffd.NotSupportedError{Feature: want, Since: want.Since()}
	}
	return nil
}

func probeRoot() error {
	if id := os.Geteuid(); id != 0 {
		return fmt.Errorf("effective user id %d", id)
	}
	return nil
}

func probeUserns() error {
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}
	return cmd.Run()
}

// probePtrace lets a child ask to be traced, which stops it at its exec.
func probePtrace() error {
	done := make(chan error)
	go func() { done <- traceOne() }()
	return <-done
}

// hugePages is how many huge pages "hugetlb" asks for.
const hugePages = 2

func probeHugetlb() error {
	const size = hugePages * hugePageSize
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB|unix.MAP_HUGE_2MB)
	if err != nil {
		return fmt.Errorf("map %d huge pages: %w (vm.nr_hugepages)", hugePages, err)
	}
	return unix.Munmap(mem)
}

// errUntraced means that ptrace did not stop what it should have.
var errUntraced = errors.New("a traced child did not stop at its exec")
