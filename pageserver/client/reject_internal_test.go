package client

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A range that is damaged again and again is held for longer each time, and one that was not
// for long is forgotten, so that what a client remembers does not grow as long as it lives.
func TestHoldsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rj rejected
		held := func() bool { return rj.check(Address{}, "pages.lz4", 0, 1) != nil }
		for range 20 {
			rj.damaged("pages.lz4", 0, 1000, 1, errors.New("checksum"))
		}
		time.Sleep(lastHold - 1)
		if !held() {
			t.Error("a range that was damaged often may be asked for at once")
		}
		time.Sleep(time.Nanosecond)
		if held() {
			t.Error("it may not be asked for when its time is over")
		}
		time.Sleep(forgetTime)
		for i := range int64(1000) {
			time.Sleep(time.Second)
			rj.damaged("eager.raw", 1000*i, 1000, 1, errors.New("checksum"))
		}
		if n := len(rj.holds["eager.raw"]); n != int(forgetTime/time.Second)+1 || len(rj.holds) != 1 {
			t.Errorf("%d ranges of %d objects are remembered", n, len(rj.holds))
		}
		rj.damaged("pages.lz4", 0, 1000, 1, errors.New("checksum"))
		if time.Sleep(firstHold); held() {
			t.Error("what was damaged long ago is held for as long as if it were again")
		}
	})
}
