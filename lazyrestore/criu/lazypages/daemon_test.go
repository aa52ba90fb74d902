package lazypages

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/pager"
)

// An atLog does something when a line is logged.
type atLog struct {
	slog.Handler
	line string
	do   func()
}

func (a atLog) Enabled(context.Context, slog.Level) bool { return true }

func (a atLog) Handle(_ context.Context, r slog.Record) error {
	if r.Message == a.line {
		a.do()
	}
	return nil
}

// When the tree is built all that can be is done before the grace, after which the tasks run and raise faults: that is
// written down, and the connection is closed.
func TestBuiltIsWrittenBeforeTheGrace(t *testing.T) {
	k, err := pager.StartKeeper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	criu, ours := socketpair(t)
	dir := t.TempDir()
	d := &daemon{
		keeper: k, listener: -1, queue: -1, state: newState(dir, k, ""), set: &set{},
		log: slog.New(atLog{slog.DiscardHandler, "the tree is built", cancel}), // it is to end, as it sees in the grace
	}
	defer d.state.letGo()
	if _, err := unix.Write(criu, binary.NativeEndian.AppendUint32(nil, finished)); err != nil {
		t.Fatal(err)
	}
	err = d.setUp(ctx, func(*waker) (int, error) {
		d.speaks(ours)
		return ours, d.state.write()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("set up: %v, want %v", err, context.Canceled)
	}
	switch left, err := readState(dir); {
	case err != nil:
		t.Error(err)
	case left.building():
		t.Error("in the grace the state says that the tree is being built")
	}
	if _, _, err := unix.Recvfrom(criu, make([]byte, 1), unix.MSG_DONTWAIT); errors.Is(err, unix.EAGAIN) {
		t.Error("in the grace the connection is open")
	}
}
