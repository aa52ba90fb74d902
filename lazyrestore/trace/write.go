package trace

import (
	"bufio"
	"encoding/json"
	"io"
	"slices"
	"strconv"
	"time"
)

// Write writes what has been recorded so far, as one JSON object.
func (r *Recorder) Write(w io.Writer) error {
	r.mu.Lock()
	events, rows, dropped := slices.Clone(r.events), slices.Clone(r.rows), r.dropped
	r.mu.Unlock()

	out := &writer{Writer: bufio.NewWriter(w), pids: map[string]int{}}
	out.WriteString(`{"displayTimeUnit":"ns","otherData":{"begin":` + quote(r.begin.Format(time.RFC3339Nano)))
	if dropped > 0 {
		out.WriteString(`,"dropped":"` + strconv.Itoa(dropped) + `"`)
	}
	out.WriteString("},\n\"traceEvents\":[")
	for i, row := range rows {
		out.row(i, row)
	}
	for i := range events {
		out.event(&events[i], rows)
	}
	out.WriteString("\n]}\n")
	return out.Flush()
}

// A writer writes events, one a line. Rows are the format's threads, numbered
// from 1.
type writer struct {
	*bufio.Writer
	pids   map[string]int // of processes, in the order in which they came
	begun  bool
	buffer []byte
}

// row names a row, and its process where that is new.
func (w *writer) row(i int, row row) {
	pid, known := w.pids[row.process]
	if !known {
		pid = len(w.pids) + 1
		w.pids[row.process] = pid
		w.line(`{"ph":"M","name":"process_name","pid":` + strconv.Itoa(pid) + `,"tid":0,"args":{"name":` + quote(row.process) + `}}`)
	}
	at := `","pid":` + strconv.Itoa(pid) + `,"tid":` + strconv.Itoa(i+1) + `,"args":{`
	w.line(`{"ph":"M","name":"thread_name` + at + `"name":` + quote(row.name) + `}}`)
	w.line(`{"ph":"M","name":"thread_sort_index` + at + `"sort_index":` + strconv.Itoa(i) + `}}`)
}

func (w *writer) event(e *event, rows []row) {
	b := append(w.buffer[:0], `{"ph":"`...)
	b = append(b, e.kind)
	b = append(b, `","name":`...)
	b = append(b, quote(e.name)...)
	b = append(b, `,"pid":`...)
	b = strconv.AppendInt(b, int64(w.pids[rows[e.row].process]), 10)
	b = append(b, `,"tid":`...)
	b = strconv.AppendInt(b, int64(e.row)+1, 10)
	b = append(b, `,"ts":`...)
	b = appendMicros(b, e.start)
	switch e.kind {
	case 'X':
		b = append(b, `,"dur":`...)
		b = appendMicros(b, e.end-e.start)
	case 'i':
		b = append(b, `,"s":"t"`...)
	}
	for i, a := range e.args {
		b = append(b, [2]string{`,"args":{`, `,`}[min(i, 1)]...)
		b = append(b, quote(a.name)...)
		b = append(b, ':')
		if a.text != "" {
			b = append(b, quote(a.text)...)
		} else {
			b = strconv.AppendInt(b, a.n, 10)
		}
	}
	if len(e.args) > 0 {
		b = append(b, '}')
	}
	w.buffer = append(b, '}')
	w.line(string(w.buffer))
}

func (w *writer) line(text string) {
	if w.begun {
		w.WriteByte(',')
	}
	w.begun = true
	w.WriteString("\n" + text)
}

// appendMicros appends microseconds to three places: the format's unit.
func appendMicros(b []byte, d time.Duration) []byte {
	return strconv.AppendFloat(b, float64(d)/1e3, 'f', 3, 64)
}

func quote(s string) string {
	text, err := json.Marshal(s)
	if err != nil {
		return `""`
	}
	return string(text)
}
