package native

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A process that is ended by its checkpoint is signalled by others until then, who do not
// know that it stands still and is read. So what is pending is read once more when the
// last of its memory has been, and looked at when the image is committed: what has come
// in between nobody will get, and is told of.

// pendingSignals are those of the process, then those of each thread.
type pendingSignals [][][]byte

func (f *Frozen) pendingSignals() (all pendingSignals, err error) {
	err = f.tracer.Do(func() error {
		first, err := proc.ReadStatus(f.pid)
		if err != nil {
			return err
		}
		shared, err := f.tracer.PeekSignals(f.pid, true)
		if err != nil {
			return err
		}
		all = pendingSignals{queued(shared, first.ShdPnd)}
		for _, tid := range f.tids {
			own, err := f.tracer.PeekSignals(tid, false)
			if err != nil {
				return err
			}
			pending := first.SigPnd
			switch {
			case tid == f.pid:
			case first.SigQueueFull || f.unqueued: // else all are in the queue; 500 threads would take 20 ms
				status, err := proc.ReadStatus(tid)
				if err != nil {
					return err
				}
				pending = status.SigPnd
			default:
				pending = 0
			}
			all = append(all, queued(own, pending))
		}
		return nil
	})
	return all, err
}

// arrived brings the state up to date with the signals that have come since it was read.
func (f *Frozen) arrived() (err error) {
	if f.pending, err = f.pendingSignals(); err != nil {
		return err
	}
	st := f.c.st
	st.Pending = st.come(f.pending[0], st.Pending)
	for i := range st.Threads {
		th := &st.Threads[i]
		th.Pending = st.come(f.pending[i+1], th.Pending)
	}
	byGroup, err := f.tracer.GroupStopped(f.pid)
	if err != nil {
		return err
	}
	st.stopped(byGroup)
	return nil
}

// Missed names the signals that have come since the image was written, and that the
// restored process will not get.
func (f *Frozen) Missed() []string {
	now, err := f.pendingSignals()
	if err != nil {
		return nil // it has ended
	}
	var names []string
	for i, list := range now {
		known := make(map[string]int)
		for _, info := range f.pending[i] {
			known[string(info)]++
		}
		for _, info := range f.c.st.come(list, f.pending[i]) {
			if known[string(info)]--; known[string(info)] < 0 {
				sig := signalOf(info)
				names = append(names, cmp.Or(unix.SignalName(unix.Signal(sig)), "signal "+strconv.Itoa(sig)))
			}
		}
	}
	return names
}

// come is what is pending now without the signals of timers that were not before: clocks
// go on while a process stands still, and a timer that had time left is set with that by
// the restore.
func (st *State) come(now, before [][]byte) [][]byte {
	return slices.DeleteFunc(slices.Clone(now), func(info []byte) bool {
		return st.ticks(info) && !slices.ContainsFunc(before, func(b []byte) bool { return bytes.Equal(origin(b), origin(info)) })
	})
}

// See <asm-generic/siginfo.h>.
const (
	siginfoCode  = 8
	siginfoTimer = 16
	siKernel     = 0x80
	siTimer      = -2
)

// origin is the part of a siginfo_t that tells signals of timers apart.
func origin(info []byte) []byte {
	if len(info) < proc.SiginfoSize {
		return info
	}
	return info[:siginfoTimer+4]
}

// ticks reports whether a signal is of a timer that the state has running.
func (st *State) ticks(info []byte) bool {
	if len(info) < proc.SiginfoSize {
		return false
	}
	switch code := int32(binary.NativeEndian.Uint32(info[siginfoCode:])); {
	case code == siKernel && unix.Signal(signalOf(info)) == unix.SIGALRM:
		t := &st.Timers[unix.ITIMER_REAL]
		return t.ValueSec|t.ValueUsec != 0
	case code == siTimer:
		id := int(binary.NativeEndian.Uint32(info[siginfoTimer:]))
		i := slices.IndexFunc(st.PosixTimers, func(t PosixTimer) bool { return t.ID == id })
		return i >= 0 && st.PosixTimers[i].ValueSec|st.PosixTimers[i].ValueNsec != 0
	}
	return false
}
