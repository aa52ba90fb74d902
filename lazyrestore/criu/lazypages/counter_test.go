package lazypages

import (
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A counter that nobody has stopped ends by itself, a while after it was last needed.
func TestCounterHasALimit(t *testing.T) {
	uffdtest.NeedFunc(t, "perf_event_open", func() error {
		fd, err := OpenCounter(0)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	})
	synctest.Test(t, func(t *testing.T) {
		c := startCounter(os.Getpid())
		defer c.stop()
		is := func() bool {
			synctest.Wait()
			maps, err := os.ReadFile("/proc/self/maps")
			if err != nil {
				t.Fatal(err)
			}
			return strings.Contains(string(maps), "[perf_event]")
		}
		if !is() {
			t.Error("there is none")
		}
		for range 2 { // it is needed again and again
			time.Sleep(counterTime - 1)
			if !c.lasts() || !is() {
				t.Error("it does not last")
			}
		}
		time.Sleep(counterTime)
		if is() || c.lasts() {
			t.Error("it is still there")
		}
	})
}
