package pager

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// The thread that is taken for sysmon sleeps again and again while there is something to do,
// as no other thread of Go's does.
func TestSysmonOf(t *testing.T) {
	for _, c := range []struct {
		pid  int
		tids []int
		want int
	}{
		{10, []int{10, 11, 12}, 11},
		{10, []int{2, 3, 10, 4000}, 4000},
		{4000, []int{2, 3, 4000}, 2},
	} {
		if got := sysmonOf(c.pid, c.tids); got != c.want {
			t.Errorf("among %d of %d it is %d, want %d", c.tids, c.pid, got, c.want)
		}
	}
	tids, err := proc.ReadTasks(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	at := "/proc/self/task/" + strconv.Itoa(sysmonOf(os.Getpid(), tids)) + "/syscall"
	const nanosleep = "35 "
	for deadline := time.Now().Add(20 * time.Second); ; { // and this keeps it awake
		call, err := os.ReadFile(at)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(string(call), nanosleep) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("of %d, %s says %q", tids, at, call)
		}
	}
}
