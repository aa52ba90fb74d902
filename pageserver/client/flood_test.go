package client

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// A server that says things without end holds up nobody who reads promptly: it
// is the pager's reader.
func TestPromptReadEndsInAFlood(t *testing.T) {
	for _, c := range []struct {
		name string
		data wire.Data
		id   uint32
		want error
	}{
		{"late replies", wire.Data{Size: 1 << 20, Length: 1000}, openID + 9, errLate},
		{"late and empty", wire.Data{Size: 1 << 20}, openID + 9, errLate},
		{"no bytes", wire.Data{Size: 1 << 20}, openID + 1, errStream},
	} {
		t.Run(c.name, func(t *testing.T) {
			sp, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			flooded := make(chan struct{})
			go func() {
				defer close(flooded)
				var b []byte
				for range 100 {
					b = wire.AppendData(b, c.id, 0, c.data)
					b = append(b, make([]byte, c.data.Length)...)
				}
				for {
					if _, err := unix.SendmsgN(sp[1], b, nil, nil, unix.MSG_NOSIGNAL); err != nil {
						return
					}
				}
			}()
			defer func() {
				_ = unix.Close(sp[0])
				<-flooded
				_ = unix.Close(sp[1])
			}()
			if err := unix.SetNonblock(sp[0], true); err != nil {
				t.Fatal(err)
			}
			if !readable(sp[0], 10*time.Second) {
				t.Fatal("the flood does not come")
			}
			x := &prompt{fd: sp[0]}
			done := make(chan error, 1)
			go func() { done <- x.read("pages.lz4", make([]byte, 1000), 0, time.Now().Add(time.Millisecond)) }()
			select {
			case err := <-done:
				if !errors.Is(err, c.want) {
					t.Errorf("read = %v, want %v", err, c.want)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("the read does not end")
			}
		})
	}
}
