package pager

import "testing"

// Threads that run through memory are told from those that do not, whatever
// others do meanwhile, and also when most of what lies before them is fetched.
func TestRows(t *testing.T) {
	s := &space{order: newOrder(1000)}
	var rs rows
	fault := func(tid uint32, frame int) (near, stream bool) {
		return rs.fault(fault{s: s, tid: tid}, frame), rs.stream()
	}
	for i := range rowFaults + 1 {
		if near, stream := fault(1, 100+2*i); stream != (i == rowFaults) || near != stream {
			t.Errorf("fault %d two frames apart: near %v, a stream %v", i, near, stream)
		}
		if near, stream := fault(2, 900-40*i); near || stream {
			t.Errorf("fault %d of a thread that jumps: near %v, a stream %v", i, near, stream)
		}
	}
	if near, stream := fault(1, 100+2*rowFaults+1); !near || !stream {
		t.Errorf("on: near %v, a stream %v", near, stream)
	}
	for i := range rowFaults + 1 {
		if near, stream := fault(3, 500-2*i); stream != (i == rowFaults) || near != stream {
			t.Errorf("fault %d going down: near %v, a stream %v", i, near, stream)
		}
	}
	if near, stream := fault(3, 500-2*rowFaults-1); !near || !stream {
		t.Errorf("on, going down: near %v, a stream %v", near, stream)
	}
	if near, stream := fault(3, 500); near || stream {
		t.Errorf("up after going down: near %v, a stream %v", near, stream)
	}
	stream := false
	for i := range 2 * rowFaults {
		_, stream = fault(4, 700-i/2)
	}
	if !stream {
		t.Error("going down, two faults to a frame: no stream")
	}
	for f := range 300 {
		s.order.claim(109 + f)
	}
	if near, stream := fault(1, 409); !near || !stream {
		t.Errorf("behind what is fetched: near %v, a stream %v", near, stream)
	}
	if near, stream := fault(1, 409+nearFrames+1); near || stream {
		t.Errorf("a jump: near %v, a stream %v", near, stream)
	}
	if near, _ := fault(1, 409+nearFrames+2); !near {
		t.Error("the next frame after a jump is not near")
	}
	for tid := range uint32(rowThreads) {
		fault(10+tid, 5)
	}
	if near, _ := fault(1, 409+nearFrames+3); near {
		t.Error("a thread is remembered behind many others")
	}
	rs.forget(s)
	if near, stream := fault(10+rowThreads-1, 6); near || stream {
		t.Errorf("of a space that is gone: near %v, a stream %v", near, stream)
	}
}
