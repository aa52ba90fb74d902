package proc

import (
	"bytes"
	"fmt"
)

// Timer is one POSIX timer of a process, see timer_create(2). Its times are
// not in /proc: timer_gettime(2) in the process itself tells them.
type Timer struct {
	ID      int
	Signal  int
	Value   uint64 // sigev_value
	Notify  string // "signal", "none" or "thread"
	Thread  bool   // Target is a thread, not a process
	Target  int    // who is told
	Clock   int    // clock_gettime(2)'s number; negative for CPU clocks of a task
	Unknown []string
}

// ParseTimers reads /proc/PID/timers.
func ParseTimers(b []byte) ([]Timer, error) {
	var list []Timer
	n := number{what: "timers"}
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		key, v, ok := cutKey(line)
		if ok && string(key) == "ID" {
			list = append(list, Timer{ID: n.int("ID", v)})
			continue
		}
		if len(list) == 0 {
			return nil, fmt.Errorf("timers: line %q before the first timer", line)
		}
		list[len(list)-1].line(&n, line, string(key), v)
	}
	return list, n.err
}

func (t *Timer) line(n *number, line []byte, key string, v []byte) {
	switch key {
	case "signal":
		num, value, ok := bytes.Cut(v, []byte("/"))
		if !ok {
			n.fail(key, v)
			return
		}
		t.Signal = n.int(key, num)
		// %px: no prefix, but zero may be written as (null) by old kernels.
		if string(value) != "(null)" {
			t.Value = n.uint(key, value, 16)
		}
	case "notify":
		how, target, ok1 := bytes.Cut(v, []byte("/"))
		kind, id, ok2 := bytes.Cut(target, []byte("."))
		if !ok1 || !ok2 || (string(kind) != "pid" && string(kind) != "tid") {
			n.fail(key, v)
			return
		}
		t.Notify, t.Thread, t.Target = string(how), string(kind) == "tid", n.int(key, id)
	case "ClockID":
		t.Clock = n.int(key, v)
	default:
		t.Unknown = append(t.Unknown, string(line))
	}
}
