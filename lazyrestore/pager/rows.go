package pager

import "cmp"

const (
	// rowFaults is how many faults in a row make a stream.
	rowFaults = 4
	// rowThreads is of how many threads rows are known.
	rowThreads = 16
)

// Rows say which threads run through memory. A thread that does so waits for
// what is fetched ahead, which then need not give way to its faults.
type rows struct {
	list   [rowThreads]row
	latest int // of list
	next   int // of list: whose place another thread gets
}

// A row is the latest faults of a thread, each of them where it gets from the
// one before by going on, up or down.
type row struct {
	s     *space // nil: of none
	tid   uint32
	frame int // of the latest
	n     int // how many before that
	way   int // 1 up, -1 down, 0 not known yet
}

// fault notes one, and reports whether its thread runs through memory, or
// looks like it.
func (rs *rows) fault(f fault, frame int) bool {
	w := rs.of(f)
	low, high, way := min(frame, w.frame), max(frame, w.frame), cmp.Compare(frame, w.frame)
	step := high - low
	if w.s == nil || way*w.way < 0 || step > nearFrames && f.s.order.claimed.nextClear(low+1, high) < high {
		*w = row{s: f.s, tid: f.tid, frame: frame}
		return false
	}
	w.frame, w.way = frame, cmp.Or(way, w.way)
	w.n++
	return step == 1 || w.n >= rowFaults
}

// stream reports whether the thread of the latest fault runs through memory.
func (rs *rows) stream() bool { return rs.list[rs.latest].n >= rowFaults }

// of is the row of f's thread: its own, or one in the place of another's.
func (rs *rows) of(f fault) *row {
	for i := range rs.list {
		if w := &rs.list[i]; w.s == f.s && w.tid == f.tid {
			rs.latest = i
			return w
		}
	}
	rs.latest, rs.next = rs.next, (rs.next+1)%len(rs.list)
	rs.list[rs.latest] = row{}
	return &rs.list[rs.latest]
}

// forget forgets the threads of s.
func (rs *rows) forget(s *space) {
	for i := range rs.list {
		if rs.list[i].s == s {
			rs.list[i] = row{}
		}
	}
}
