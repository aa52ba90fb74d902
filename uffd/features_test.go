package uffd_test

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

func TestFeaturesString(t *testing.T) {
	tests := []struct {
		in    uffd.Features
		want  string
		since string
	}{
		{0, "0", ""},
		{uffd.FeatureWriteProtect, "PAGEFAULT_FLAG_WP", "5.7"},
		{uffd.FeatureEventFork | uffd.FeatureThreadID, "EVENT_FORK|THREAD_ID", "4.14"},
		{uffd.FeatureWriteProtect | uffd.FeatureMissingShmem, "PAGEFAULT_FLAG_WP|MISSING_SHMEM", "5.7"},
		{uffd.FeatureMove, "MOVE", "6.8"},
		{uffd.FeatureMove | 1<<40, "MOVE|0x10000000000", ""},
	}
	for _, tt := range tests {
		if got := tt.in.String(); got != tt.want {
			t.Errorf("String(%#x) = %q, want %q", uint64(tt.in), got, tt.want)
		}
		if got := tt.in.Since(); got != tt.since {
			t.Errorf("Since(%#x) = %q, want %q", uint64(tt.in), got, tt.since)
		}
	}
}

func TestEnable(t *testing.T) {
	uffdtest.Need(t, "uffd")
	open := func(t *testing.T) *uffd.FD {
		f, err := uffd.Open(uffd.CloseOnExec)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	const unknown = 1 << 60

	t.Run("not supported", func(t *testing.T) {
		f := open(t)
		_, err := f.Enable(uffd.FeatureThreadID | unknown)
		var missing *uffd.NotSupportedError
		if !errors.As(err, &missing) || missing.Feature != unknown || missing.Since != "" {
			t.Fatalf("Enable = %v, want a NotSupportedError about %#x", err, uint64(unknown))
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Error("the error is not errors.ErrUnsupported")
		}
		if _, err := f.Enable(uffd.FeatureThreadID); err != nil {
			t.Errorf("another try with less: %v", err)
		}
	})
	t.Run("twice", func(t *testing.T) {
		f := open(t)
		info, err := f.Enable(uffd.FeatureThreadID)
		if err != nil {
			t.Fatal(err)
		}
		if !info.Features.Has(uffd.FeatureThreadID) || !info.Ioctls.Has(uffd.IoctlAPI|uffd.IoctlRegister) {
			t.Errorf("Enable = %v, %#x", info.Features, uint64(info.Ioctls))
		}
		if _, err := f.Enable(0); !errors.Is(err, unix.EINVAL) {
			t.Errorf("second Enable = %v, want EINVAL", err)
		}
	})
	t.Run("before it", func(t *testing.T) {
		f := open(t)
		if _, err := f.Read(make([]uffd.Msg, 1)); !errors.Is(err, unix.EINVAL) {
			t.Errorf("Read = %v, want EINVAL", err)
		}
	})
}

// What the errors of an older kernel say.
func TestNotSupportedErrorText(t *testing.T) {
	err := &uffd.NotSupportedError{Feature: uffd.FeaturePoison, Since: "6.6"}
	if got := err.Error(); !strings.Contains(got, "POISON") || !strings.Contains(got, "6.6") {
		t.Errorf("Error = %q", got)
	}
}

func TestProbe(t *testing.T) {
	uffdtest.Need(t, "uffd")
	s := uffd.Probe()
	if !s.Usable() || s.ForkEvents != nil {
		t.Errorf("Probe = %+v, but the helper found a userfaultfd", s)
	}
	if !s.Features.Has(uffd.FeatureEventFork|uffd.FeatureMissingShmem) || !s.Ioctls.Has(uffd.IoctlRegister) {
		t.Errorf("Probe = %v, %#x", s.Features, uint64(s.Ioctls))
	}
}

func TestClose(t *testing.T) {
	uffdtest.Need(t, "uffd")
	f, err := uffd.Open(uffd.CloseOnExec)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if f.Fd() != -1 {
		t.Errorf("Fd = %d after Close", f.Fd())
	}
	if err := f.Close(); !errors.Is(err, unix.EBADF) {
		t.Errorf("second Close = %v, want EBADF", err)
	}
	if err := f.Wake(0x10000, 4096); !errors.Is(err, unix.EBADF) {
		t.Errorf("Wake = %v, want EBADF", err)
	}
}
