package client

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A range is held once all servers that are up have given it damaged, however often one has.
func TestHeldAfterAllHadTheirTurn(t *testing.T) {
	a, b, c := &server{index: 0}, &server{index: 1}, &server{index: 2}
	all := []*server{a, b, c}
	for _, tt := range []struct {
		name string
		by   []*server
		up   []*server
		held bool
	}{
		{"one of them", []*server{a}, all, false},
		{"one again and again", []*server{a, a, a, a}, all, false},
		{"two in turns", []*server{a, b, a, b, a, b}, all, false},
		{"all", []*server{b, a, c}, all, true},
		{"all but who is away", []*server{b, a}, []*server{a, b}, true},
		{"who is away, and was not", []*server{c, a}, []*server{a, b}, false},
		{"somebody", []*server{nil}, all, true},
		{"all, and one anew", []*server{a, b, c, a}, all, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var rj rejected
				for _, s := range tt.by {
					time.Sleep(lastHold)
					rj.damaged("pages.lz4", 0, 1000, s, tt.up, errors.New("checksum"))
				}
				if held := rj.check(Address{}, "pages.lz4", 0, 1) != nil; held != tt.held {
					t.Errorf("held: %v", held)
				}
			})
		})
	}
}

// A range that is damaged again and again is held for longer each time, and one that was not
// for long is forgotten, so that what a client remembers does not grow as long as it lives.
func TestHoldsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rj rejected
		only := &server{}
		up := []*server{only}
		held := func() bool { return rj.check(Address{}, "pages.lz4", 0, 1) != nil }
		for range 20 {
			rj.damaged("pages.lz4", 0, 1000, only, up, errors.New("checksum"))
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
			rj.damaged("eager.raw", 1000*i, 1000, only, up, errors.New("checksum"))
		}
		if n := len(rj.holds["eager.raw"]); n != int(forgetTime/time.Second)+1 || len(rj.holds) != 1 {
			t.Errorf("%d ranges of %d objects are remembered", n, len(rj.holds))
		}
		rj.damaged("pages.lz4", 0, 1000, only, up, errors.New("checksum"))
		if time.Sleep(firstHold); held() {
			t.Error("what was damaged long ago is held for as long as if it were again")
		}
	})
}
