package native

import (
	"slices"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

func TestDifferingMounts(t *testing.T) {
	root := proc.Mount{Device: "254:1", Root: "/", Point: "/", Type: "ext4"}
	ours := proc.Mount{Device: "0:22", Root: "/", Point: "/proc", Type: "proc"}
	theirs := proc.Mount{Device: "0:77", Root: "/", Point: "/proc", Type: "proc"}
	part := proc.Mount{Device: "0:77", Root: "/sys", Point: "/proc", Type: "proc"}
	tmp := proc.Mount{Device: "0:30", Root: "/", Point: "/tmp", Type: "tmpfs"}
	type list = []proc.Mount
	for _, tt := range []struct {
		name               string
		ours, theirs, want list
	}{
		{"its own /proc", list{root, ours}, list{root, ours, theirs}, nil},
		{"the same twice", list{root, tmp, tmp, ours}, list{root, tmp, ours, tmp, theirs}, nil},
		{"once more than we have", list{root, tmp, ours}, list{root, tmp, tmp, ours, theirs}, list{tmp}},
		{"one of its own", list{root, ours}, list{root, ours, theirs, tmp}, list{tmp}},
		{"one that it lacks", list{root, ours, tmp}, list{root, ours, theirs}, list{tmp}},
		{"a second /proc", list{root, ours}, list{root, ours, theirs, theirs}, list{theirs}},
		{"part of a /proc", list{root, ours}, list{root, ours, part}, list{part}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := differingMounts(tt.ours, tt.theirs); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
