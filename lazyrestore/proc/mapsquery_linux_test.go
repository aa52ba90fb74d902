package proc

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// What is told of some mappings is what the file has of them.
func TestReadMapsIn(t *testing.T) {
	pid := startTarget(t, compile(t, "target.c")).pid()
	all, err := ReadMaps(pid)
	if err != nil || len(all) < 4 {
		t.Fatalf("%d mappings, %v", len(all), err)
	}
	all = slices.DeleteFunc(all, func(v VMA) bool { return v.Kind == VMAVSyscall }) // which is nobody's
	known := func(list []VMA) (out []VMA) {
		for _, v := range list {
			out = append(out, VMA{Range: v.Range, Prot: v.Prot, Shared: v.Shared, Offset: v.Offset, Inode: v.Inode, DevMajor: v.DevMajor, DevMinor: v.DevMinor})
		}
		return out
	}
	check := func(what string, r page.Range, want []VMA) {
		t.Helper()
		got, err := ReadMapsIn(pid, r)
		if diff := cmp.Diff(known(want), known(got)); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", what, err, diff)
		}
	}
	for i, v := range all {
		check("one", v.Range, all[i:i+1])
		check("its last page", page.Range{Start: v.End - page.Size, End: v.End}, all[i:i+1])
	}
	check("three", page.Range{Start: all[0].End - page.Size, End: all[2].Start + page.Size}, all[:3])
	check("all", page.Range{End: all[len(all)-1].End}, all)
	check("none", page.RangeOf(0, page.Size), nil)

	asked, err := queryMaps(pid, page.Range{End: 1 << 63})
	if errors.Is(err, unix.ENOTTY) && !hasMapQuery(t) {
		return
	}
	if diff := cmp.Diff(known(all), known(asked)); diff != "" || err != nil {
		t.Errorf("asked for all: %v\n%s", err, diff)
	}
	if _, err := ReadMapsIn(1<<31-1, all[0].Range); !errors.Is(err, unix.ENOENT) {
		t.Errorf("of nobody: %v", err)
	}
}

// hasMapQuery reports whether the kernel has PROCMAP_QUERY.
func hasMapQuery(t *testing.T) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return major > 6 || major == 6 && minor >= 11
}
