package uffd

import (
	"encoding/binary"
	"fmt"
	"structs"
)

// MsgSize is the size of a Msg in bytes, in memory as on the wire.
const MsgSize = 32

// Msg is one event as read(2) delivers it (struct uffd_msg). Its memory is
// exactly the kernel's, so that a caller may keep a []Msg in memory shared
// with another process and Read straight into it.
//
// Which accessor to call follows from Event: Fault for EventPagefault, Fork
// for EventFork, Remap for EventRemap, Range for EventRemove and EventUnmap.
// Another one decodes the same bytes and means nothing, but never panics.
type Msg struct {
	_     structs.HostLayout
	event EventType
	_     [7]byte
	arg   [3]uint64
}

// EventType is what a Msg is about (UFFD_EVENT_*).
type EventType uint8

// The events. All but EventPagefault come only if the feature of their name
// was enabled, and block the thread that caused them until they are read: the
// read is the acknowledgement.
const (
	EventPagefault EventType = 0x12 // a thread waits for a page
	EventFork      EventType = 0x13 // the process forked
	EventRemap     EventType = 0x14 // memory moved, or was resized, by mremap
	EventRemove    EventType = 0x15 // pages were dropped; the range stays registered
	EventUnmap     EventType = 0x16 // the range is gone
)

// String gives the event's name, in the header's word.
func (e EventType) String() string {
	switch e {
	case EventPagefault:
		return "pagefault"
	case EventFork:
		return "fork"
	case EventRemap:
		return "remap"
	case EventRemove:
		return "remove"
	case EventUnmap:
		return "unmap"
	}
	return fmt.Sprintf("event %#x", uint8(e))
}

// FaultFlags say what kind of fault it was (UFFD_PAGEFAULT_FLAG_*).
type FaultFlags uint64

// The bits of FaultFlags. A fault with neither FaultWriteProtect nor
// FaultMinor is a missing page.
const (
	FaultWrite        FaultFlags = 1 << 0 // the access was a write
	FaultWriteProtect FaultFlags = 1 << 1 // the page is there but protected
	FaultMinor        FaultFlags = 1 << 2 // the page is in the page cache
)

// Fault is a thread that waits for a page.
type Fault struct {
	// Addr is the address, rounded down to its page unless
	// FeatureExactAddress is enabled.
	Addr  uint64
	Flags FaultFlags
	// TID is the thread in the pid namespace of the reader, zero without
	// FeatureThreadID.
	TID uint32
}

// Event is what the message is about.
func (m *Msg) Event() EventType { return m.event }

// Fault decodes an EventPagefault.
func (m *Msg) Fault() Fault {
	return Fault{
		Addr:  m.arg[1],
		Flags: FaultFlags(m.arg[0]),
		TID:   low32(m.arg[2]),
	}
}

// Fork is the descriptor that an EventFork brought: a new userfaultfd for the
// child, already open in the process that read the message, with the features
// and the registered ranges of its parent. The caller owns it; if it is lost,
// so is the child's missing memory.
func (m *Msg) Fork() int { return int(int32(low32(m.arg[0]))) }

// Remap decodes an EventRemap: length bytes are now at to, and no longer at
// from. The length is the old one: what a growing mremap added is registered
// but has no content.
func (m *Msg) Remap() (from, to, length uint64) { return m.arg[0], m.arg[1], m.arg[2] }

// Range decodes an EventRemove or EventUnmap: the bytes from start up to but
// not including end.
func (m *Msg) Range() (start, end uint64) { return m.arg[0], m.arg[1] }

// String gives the event with its values, addresses in hex.
func (m *Msg) String() string {
	switch m.event {
	case EventPagefault:
		f := m.Fault()
		return fmt.Sprintf("pagefault at %#x flags %#x thread %d", f.Addr, uint64(f.Flags), f.TID)
	case EventFork:
		return fmt.Sprintf("fork descriptor %d", m.Fork())
	case EventRemap:
		from, to, length := m.Remap()
		return fmt.Sprintf("remap %#x-%#x to %#x", from, from+length, to)
	case EventRemove, EventUnmap:
		start, end := m.Range()
		return fmt.Sprintf("%v %#x-%#x", m.event, start, end)
	}
	return m.event.String()
}

// ParseMsg decodes the first MsgSize bytes of b, for those who get messages
// by other means than Read. It fails on fewer bytes, and on nothing else: an
// event that is not known is for the caller to refuse.
func ParseMsg(b []byte) (Msg, error) {
	if len(b) < MsgSize {
		return Msg{}, fmt.Errorf("parse userfaultfd message: %d bytes of %d", len(b), MsgSize)
	}
	m := Msg{event: EventType(b[0])}
	for i := range m.arg {
		m.arg[i] = binary.NativeEndian.Uint64(b[8+8*i:])
	}
	return m, nil
}

// Append adds the MsgSize bytes of m to b, as the kernel would write them.
func (m *Msg) Append(b []byte) []byte {
	b = append(b, byte(m.event), 0, 0, 0, 0, 0, 0, 0)
	for _, v := range m.arg {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	return b
}

// low32 is the __u32 that lies at the start of a __u64 in memory.
func low32(v uint64) uint32 {
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], v)
	return binary.NativeEndian.Uint32(b[:4])
}
