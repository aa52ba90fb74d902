package proc

import (
	"bytes"
	"errors"
	"fmt"
)

// Stat is what /proc/PID/stat says, as far as it is state: times and counts of
// faults are left out. See proc_pid_stat(5) for the order of its fields.
type Stat struct {
	PID                  int
	Comm                 string
	State                byte
	PPID, PGRP           int // 0: outside of our pid namespace
	Session              int
	TTY                  int // device number of the controlling terminal; 0: none
	ForegroundPGRP       int // of the terminal; -1: none
	Flags                uint64
	Priority, Nice       int
	Threads              int
	StartTime            uint64 // clock ticks since boot
	StartCode, EndCode   uint64
	StartStack           uint64
	ExitSignal           int
	Processor            int
	RTPriority, Policy   int
	StartData, EndData   uint64
	StartBrk             uint64
	ArgStart, ArgEnd     uint64
	EnvStart, EnvEnd     uint64
	ExitCode             int
	UTime, STime         uint64   // clock ticks
	Unknown              []string // fields after the last that is known
	ChildUTime, ChildSTm uint64   // clock ticks, of children waited for
}

// ParseStat reads /proc/PID/stat. The name of a process may hold blanks,
// newlines and parentheses: it ends at the last parenthesis of the file.
func ParseStat(b []byte) (Stat, error) {
	var s Stat
	open, shut := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 1 || shut < open {
		return s, errors.New("stat: no name in parentheses")
	}
	s.Comm = string(b[open+1 : shut])
	n := number{what: "stat"}
	s.PID = n.int("pid", trim(b[:open]))
	rest := bytes.TrimSuffix(b[shut+1:], []byte("\n"))
	// Fields are counted from 1 as in the manual page; the state is the third.
	i := 3
	for ; ; i++ {
		var f []byte
		f, rest = cutField(rest)
		if len(f) == 0 {
			break
		}
		s.field(&n, i, f)
	}
	if n.err == nil && i <= 52 {
		n.err = fmt.Errorf("stat: %d fields, want 52", i-1)
	}
	return s, n.err
}

func (s *Stat) field(n *number, i int, f []byte) {
	switch i {
	case 3:
		s.State = f[0]
	case 4:
		s.PPID = n.int("ppid", f)
	case 5:
		s.PGRP = n.int("pgrp", f)
	case 6:
		s.Session = n.int("session", f)
	case 7:
		s.TTY = n.int("tty_nr", f)
	case 8:
		s.ForegroundPGRP = n.int("tpgid", f)
	case 9:
		s.Flags = n.uint("flags", f, 10)
	case 14:
		s.UTime = n.uint("utime", f, 10)
	case 15:
		s.STime = n.uint("stime", f, 10)
	case 16:
		s.ChildUTime = n.uint("cutime", f, 10)
	case 17:
		s.ChildSTm = n.uint("cstime", f, 10)
	case 18:
		s.Priority = n.int("priority", f)
	case 19:
		s.Nice = n.int("nice", f)
	case 20:
		s.Threads = n.int("num_threads", f)
	case 22:
		s.StartTime = n.uint("starttime", f, 10)
	default:
		s.late(n, i, f)
	}
}

func (s *Stat) late(n *number, i int, f []byte) {
	switch i {
	case 26:
		s.StartCode = n.uint("startcode", f, 10)
	case 27:
		s.EndCode = n.uint("endcode", f, 10)
	case 28:
		s.StartStack = n.uint("startstack", f, 10)
	case 38:
		s.ExitSignal = n.int("exit_signal", f)
	case 39:
		s.Processor = n.int("processor", f)
	case 40:
		s.RTPriority = n.int("rt_priority", f)
	case 41:
		s.Policy = n.int("policy", f)
	case 45:
		s.StartData = n.uint("start_data", f, 10)
	case 46:
		s.EndData = n.uint("end_data", f, 10)
	case 47:
		s.StartBrk = n.uint("start_brk", f, 10)
	case 48:
		s.ArgStart = n.uint("arg_start", f, 10)
	case 49:
		s.ArgEnd = n.uint("arg_end", f, 10)
	case 50:
		s.EnvStart = n.uint("env_start", f, 10)
	case 51:
		s.EnvEnd = n.uint("env_end", f, 10)
	case 52:
		s.ExitCode = n.int("exit_code", f)
	default:
		if i > 52 {
			s.Unknown = append(s.Unknown, string(f))
		}
	}
}
