package store

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

// Who keeps something does not wait for those who make room for it: what may be kept until
// they are done is, and no more.
func TestMakingRoomHoldsNothingUp(t *testing.T) {
	const mib = 1 << 20
	begun, used := make(chan struct{}, 1), make(chan int64)
	sp := cacheSpace{limit: 8 * mib, left: mib, look: func() (int64, error) {
		begun <- struct{}{}
		return <-used, nil
	}}
	var log bytes.Buffer
	c := &Cache{log: slog.New(slog.NewTextHandler(&log, nil))}
	take := func(n int64, want bool) {
		t.Helper()
		if got := sp.take(c, n); got != want {
			t.Fatalf("%d more bytes: %v, want %v", n, got, want)
		}
	}
	looks := func(found int64) {
		t.Helper()
		<-begun
		used <- found
		sp.looks.Wait()
	}
	take(mib/2, true) // begins to look
	take(mib/2, true)
	take(1, false)
	looks(mib)
	take(2*mib, true) // of the 7 that are left, perhaps without the one above
	select {
	case <-begun:
		t.Fatal("it looks again too soon")
	default:
	}
	take(2*mib, true)
	take(2*mib, true)
	take(1, false)
	if log.Len() > 0 {
		t.Errorf("it says %s", &log)
	}
	looks(8*mib - 100)
	take(1, false)
	take(200, false)
	if n := strings.Count(log.String(), errCacheFull.Error()); n != 1 {
		t.Errorf("it says %d times that it is full: %s", n, &log)
	}
	take(lookEvery, false)
	looks(0)
	take(8*mib, true)
	looks(8 * mib)
}
