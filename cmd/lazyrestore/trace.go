package main

import (
	"bytes"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/trace"
)

// A traceFile is where --trace-file has a restore recorded. The methods of nil,
// where nobody wants that, do nothing.
type traceFile struct {
	*output
	trace *trace.Recorder
}

// newTraceFile opens the file and begins to record. What this command did before,
// from its fork on, is recorded as the processor time that it took.
func newTraceFile(path string) (*traceFile, error) {
	out, err := newOutput(path)
	if out == nil {
		return nil, err
	}
	now, spent := time.Now(), processorTime()
	r := trace.New(now.Add(-spent), "lazyrestore", "restore")
	r.Span(0, "start of the command (processor time)", 0, spent)
	return &traceFile{out, r}, nil
}

func (t *traceFile) recorder() *trace.Recorder {
	if t == nil {
		return nil
	}
	return t.trace
}

// commit writes what was recorded, once.
func (t *traceFile) commit() error {
	if t == nil || t.output == nil {
		return nil
	}
	var b bytes.Buffer
	err := t.trace.Write(&b)
	if err == nil {
		err = t.output.commit(b.Bytes())
	}
	t.output = nil
	return err
}

// processorTime is what all threads of this process have used.
func processorTime() time.Duration {
	var used unix.Timespec
	if unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &used) != nil {
		return 0
	}
	return time.Duration(used.Nano())
}
