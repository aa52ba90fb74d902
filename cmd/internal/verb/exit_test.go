package verb

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

var errRefused = &lazyrestore.RefusedError{Reasons: []lazyrestore.Reason{
	{What: "descriptor 7 (socket:[12])", Why: "a TCP connection", Help: "close it"},
	{What: "descriptor 8 (/dev/kvm)", Why: "a device"},
}}

func TestExitCode(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want int
	}{
		{"none", nil, 0},
		{"other", io.ErrUnexpectedEOF, 1},
		{"usage", &cli.UsageError{}, 2},
		{"refused", fmt.Errorf("process 1: %w", errRefused), 3},
		{"damaged", fmt.Errorf("image x: %w", &image.DamagedError{Object: "pages.idx", Err: io.EOF}), 4},
		{"newer", fmt.Errorf("image x: %w", image.ErrVersion), 4},
		{"facility", fmt.Errorf("image x: %w", &lazyrestore.FacilityError{Facility: "userfaultfd"}), 5},
		{"source", fmt.Errorf("image x: %w", lazyrestore.ErrSourceLost), 6},
		{"foreground", &ForegroundError{errRefused}, 125},
	}
	for _, tt := range tests {
		if got := ExitCode(tt.err); got != tt.want {
			t.Errorf("%s: exit code %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestFailureForPeople(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"plain", errors.New("read it: gone"), "lazyrestore restore: read it: gone\n"},
		{"reasons", fmt.Errorf("process 1: %w", errRefused), "lazyrestore restore: process 1: refused:\n" +
			"  descriptor 7 (socket:[12]): a TCP connection\n      close it\n  descriptor 8 (/dev/kvm): a device\n"},
		{
			"foreground", &ForegroundError{fmt.Errorf("image x: %w", &lazyrestore.FacilityError{Facility: "userfaultfd", Hint: "be root"})},
			"lazyrestore restore: image x: userfaultfd is not available (status 5: facility missing)\n  be root\n",
		},
		{"foreground reasons", &ForegroundError{errRefused}, "lazyrestore restore: refused (status 3: refused):\n" +
			"  descriptor 7 (socket:[12]): a TCP connection\n      close it\n  descriptor 8 (/dev/kvm): a device\n"},
		{"no hint", &lazyrestore.FacilityError{Facility: "ptrace"}, "lazyrestore restore: ptrace is not available\n  lazyrestore check says what this machine lacks\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b strings.Builder
			Tell(&b, "restore", tt.err)
			if diff := cmp.Diff(tt.want, b.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// full is standard output on a disk without room.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestWhatCannotBePrinted(t *testing.T) {
	tests := []struct {
		name  string
		args  []string
		acted bool
		err   error
		want  int
	}{
		{"text", nil, false, nil, Failed},
		{"JSON", []string{"--json"}, false, nil, Failed},
		{"help", []string{"--help"}, false, nil, Failed},
		{"about what was done", nil, true, nil, Done},
		{"JSON about what was done", []string{"--json"}, true, nil, Done},
		{"beside an error", nil, false, errRefused, Refused},
		{"a status of its own", []string{"--json"}, false, Status(Damaged), Damaged},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stderr strings.Builder
			c := &Command{Stdout: full{}, Stderr: &stderr}
			got := c.Do(&cli.Command{Name: "inspect", Flags: c.Flags(), Run: func([]string) error {
				c.Acted = tt.acted
				c.Print("words")
				if c.JSON {
					c.PrintJSON("words")
				}
				return tt.err
			}}, tt.args)
			if got != tt.want {
				t.Errorf("exit code %d, want %d", got, tt.want)
			}
			if said := strings.Contains(stderr.String(), "no space left on device"); said != (tt.err == nil) {
				t.Errorf("standard error: %q", &stderr)
			}
		})
	}
}
