package uffd_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/lazyrestore/lazyrestore/uffd"
)

// message is the bytes of a message with the given words after its header.
func message(event uffd.EventType, words ...uint64) []byte {
	b := make([]byte, uffd.MsgSize)
	b[0] = byte(event)
	for i, w := range words {
		binary.NativeEndian.PutUint64(b[8+8*i:], w)
	}
	return b
}

func TestMsgString(t *testing.T) {
	tests := []struct {
		in   []byte
		want string
	}{
		{message(uffd.EventPagefault, 1, 0x7000, 42), "pagefault at 0x7000 flags 0x1 thread 42"},
		{message(uffd.EventFork, 9), "fork descriptor 9"},
		{message(uffd.EventRemap, 0x1000, 0x9000, 0x2000), "remap 0x1000-0x3000 to 0x9000"},
		{message(uffd.EventRemove, 0x1000, 0x3000), "remove 0x1000-0x3000"},
		{message(uffd.EventUnmap, 0x1000, 0x3000), "unmap 0x1000-0x3000"},
		{message(0x99), "event 0x99"},
	}
	for _, tt := range tests {
		m, err := uffd.ParseMsg(tt.in)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.String(); got != tt.want {
			t.Errorf("String = %q, want %q", got, tt.want)
		}
	}
}

// Parsing never panics, and what it has read it appends again, reserved bytes
// aside.
func FuzzParseMsg(f *testing.F) {
	f.Add(message(uffd.EventPagefault, 3, 0x7f0000001000, 77))
	f.Add(message(uffd.EventFork, 12))
	f.Add(message(uffd.EventRemap, 0x1000, 0x2000, 0x3000))
	f.Add(message(uffd.EventUnmap, 0x1000, 0x2000))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := uffd.ParseMsg(b)
		if (err != nil) != (len(b) < uffd.MsgSize) {
			t.Fatalf("ParseMsg of %d bytes: %v", len(b), err)
		}
		if err != nil {
			return
		}
		want := bytes.Clone(b[:uffd.MsgSize])
		clear(want[1:8])
		if got := m.Append([]byte("x")); !bytes.Equal(got[1:], want) {
			t.Errorf("Append = %x, want %x", got[1:], want)
		}
		if m.Event() != uffd.EventType(b[0]) {
			t.Errorf("Event = %v", m.Event())
		}
		fault := m.Fault()
		from, to, length := m.Remap()
		start, end := m.Range()
		if fault.Addr != to || uint64(fault.Flags) != from || start != from || end != to {
			t.Error("the accessors disagree about the words")
		}
		if uint32(m.Fork()) != binary.NativeEndian.Uint32(b[8:]) || fault.TID != binary.NativeEndian.Uint32(b[24:]) {
			t.Error("the accessors disagree about the 32-bit fields")
		}
		_, _ = length, m.String()
	})
}
