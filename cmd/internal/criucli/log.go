package criucli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Dir is where names of log, pid and socket files are looked for.
func (o *Options) Dir() string {
	if o.WorkDir != "" {
		return o.WorkDir
	}
	return o.ImagesDir
}

// File is the path of a file named on the command line.
func (o *Options) File(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(o.Dir(), name)
}

// OpenLog opens the log where the command line wants it; the caller closes it.
func (o *Options) OpenLog(stderr io.Writer) (io.WriteCloser, error) {
	if o.LogFile == "" || o.LogFile == "-" {
		return nopCloser{stderr}, nil
	}
	return os.OpenFile(o.File(o.LogFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// Level is the least level that the verbosity shows.
func (o *Options) Level() slog.Level {
	switch {
	case o.Verbosity <= 1:
		return slog.LevelError
	case o.Verbosity == 2:
		return slog.LevelWarn
	case o.Verbosity == 3:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// NewLogger is a logger whose lines look like CRIU's: the time since it was
// made where the verbosity shows it, "Error" and "Warn", who speaks, and the
// message with its attributes.
func (o *Options) NewLogger(w io.Writer, who string) *slog.Logger {
	return slog.New(&handler{w: w, mu: new(sync.Mutex), start: time.Now(), level: o.Level(), times: o.Verbosity >= 3, who: who})
}

// A handler writes lines as CRIU does.
type handler struct {
	start time.Time
	level slog.Level
	times bool
	who   string
	attrs string

	mu *sync.Mutex
	w  io.Writer // guarded by mu
}

// Enabled is slog.Handler's.
func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

// Handle is slog.Handler's.
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	if h.times {
		d := r.Time.Sub(h.start)
		fmt.Fprintf(&b, "(%02d.%06d) ", d/time.Second, d%time.Second/time.Microsecond)
	}
	switch {
	case r.Level >= slog.LevelError:
		b.WriteString("Error: ")
	case r.Level >= slog.LevelWarn:
		b.WriteString("Warn: ")
	}
	b.WriteString(h.who + ": " + r.Message + h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		appendAttr(&b, a)
		return true
	})
	b.WriteByte('\n')
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := io.WriteString(h.w, b.String())
	return err
}

func appendAttr(b *strings.Builder, a slog.Attr) {
	v := a.Value.Resolve().String()
	if strings.ContainsAny(v, " \"\n") {
		v = fmt.Sprintf("%q", v)
	}
	fmt.Fprintf(b, " %s=%s", a.Key, v)
}

// WithAttrs is slog.Handler's.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	var b strings.Builder
	for _, a := range attrs {
		appendAttr(&b, a)
	}
	c := *h
	c.attrs += b.String()
	return &c
}

// WithGroup is slog.Handler's; groups are not shown.
func (h *handler) WithGroup(string) slog.Handler { return h }
