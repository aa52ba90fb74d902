package proc

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// timerEvents are the records of a tracepoint that one task hits.
type timerEvents struct {
	id   uint64 // the tracepoint's
	fd   int
	ring []byte
	tail uint64
}

// Places in the tracepoint's record, and in what perf has around it; see its
// format file and perf_event_open(2).
const (
	perfHeadAt       = 1024 // data_head in struct perf_event_mmap_page
	perfTailAt       = 1032
	perfSample       = 9 // PERF_RECORD_SAMPLE
	perfHeader       = 8
	timerSoftExpires = 32
)

// hrtimerStart is where tracefs has the number of the tracepoint.
const hrtimerStart = "events/timer/hrtimer_start/id"

// timerTracepoint is the number of the tracepoint that says for when a timer is
// set. Where nobody has mounted tracefs it is mounted for the moment, at no
// place, which needs CAP_SYS_ADMIN.
func timerTracepoint() (uint64, error) {
	for _, dir := range []string{"/sys/kernel/tracing/", "/sys/kernel/debug/tracing/"} {
		if b, err := readPath(dir+hrtimerStart, nil); err == nil {
			return parseUnsigned(b)
		}
	}
	dir, err := mountNowhere("tracefs")
	if err != nil {
		return 0, fmt.Errorf("mount tracefs: %w", err)
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, hrtimerStart, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open tracefs's %s: %w", hrtimerStart, err)
	}
	defer unix.Close(fd)
	var b [32]byte
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return 0, fmt.Errorf("read tracefs's %s: %w", hrtimerStart, err)
	}
	return parseUnsigned(b[:n])
}

// mountNowhere is the root of a file system that is mounted as long as the
// descriptor is open, and that no path leads to.
func mountNowhere(kind string) (int, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
}

// openTimers listens to the timers that a task sets, by the tracepoint id. It
// needs CAP_PERFMON.
func openTimers(id uint64, tid int) (*timerEvents, error) {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: id, Sample: 1, Sample_type: unix.PERF_SAMPLE_RAW, Wakeup: 1}
	attr.Size = unix.PERF_ATTR_SIZE_VER5
	e := &timerEvents{id: id}
	var err error
	if e.fd, err = unix.PerfEventOpen(&attr, tid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("listen to timers: %w", err)
	}
	pageSize := unix.Getpagesize()
	if e.ring, err = unix.Mmap(e.fd, 0, 2*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		unix.Close(e.fd)
		return nil, fmt.Errorf("listen to timers: %w", err)
	}
	return e, nil
}

func (e *timerEvents) close() {
	_ = unix.Munmap(e.ring)
	unix.Close(e.fd)
}

// read gives the moments for which timers were set since it was last called.
// The task stands still.
func (e *timerEvents) read() (until []int64) {
	le := binary.LittleEndian
	data := e.ring[len(e.ring)/2:]
	at := func(off uint64, n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = data[(off+uint64(i))%uint64(len(data))]
		}
		return b
	}
	head := le.Uint64(e.ring[perfHeadAt:])
	for e.tail < head {
		header := at(e.tail, perfHeader)
		size := le.Uint16(header[6:])
		if size < perfHeader {
			break
		}
		if le.Uint32(header) == perfSample && size >= perfHeader+4+timerSoftExpires+8 {
			until = append(until, int64(le.Uint64(at(e.tail+perfHeader+4+timerSoftExpires, 8))))
		}
		e.tail += uint64(size)
	}
	e.tail = head
	le.PutUint64(e.ring[perfTailAt:], head)
	return until
}
