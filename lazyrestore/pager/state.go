package pager

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// The state is what a successor needs of a pager that was killed. It lives in
// shared memory (a memfd) that the keeper's descriptor table keeps alive.
// Integers are in the machine's own order (little-endian everywhere we run).
//
//	header, 4096 bytes
//	    0  magic "lzrpager"
//	    8  version, u64
//	   16  turn, u64: area turn&1 is the valid one
//	   24  the process that has taken over what it says, u64: only that one's state is gone on from; 0: none has
//	   32  two areas: offset, length; u64 each
//	   64  the descriptor that it has itself, u64: all numbers in it are of the table in which it is that one
//	area
//	    0  length of the snapshot, u64
//	    8  snapshot: the world as it was when the area became valid
//	       log: 32-byte slots from the next multiple of 32 to the area's end
//
// A slot is either what read(2) of a uffd put there, untouched (struct
// uffd_msg of linux/userfaultfd.h), or one of our own: the first byte tells. The
// kernel's read is what lets the process go on, so an event is in the log
// before it has an effect, and a killed pager can have lost none.
//
// A slot slotSpace goes before the events of one space, and slots slotKept
// between them. The log ends at the
// first empty slot; faults in it mean nothing (a successor wakes everybody,
// and they fault again), so slots past the last event may be used again
// without being wiped.
const (
	stateMagic   = "lzrpager"
	stateVersion = 6
	headerBytes  = 4096
	slotBytes    = 32

	turnOffset  = 16
	takenOffset = 24
	areasOffset = 32
	fileOffset  = 64
)

// First bytes of slots: those of linux/userfaultfd.h, and ours.
const (
	slotFault  = 0x12
	slotFork   = 0x13
	slotRemap  = 0x14
	slotRemove = 0x15
	slotUnmap  = 0x16
	slotSpace  = 0xf0 // u32 at 8: id of the space whose events follow
	slotDrop   = 0xf1 // the space is no longer served
	slotCame   = 0xf3 // u32 at 8: the uffd of the space, which was expected
	slotForce  = 0xf4 // what is early is taken as it was told (early.go)
	slotMoves  = 0xf5 // start, end, thread: a call was under way that moves memory from there, when what is fresh was told (limbo.go)
	slotGoes   = 0xf6 // start, end, thread: one after which nothing is left there
	slotSure   = 0xf7 // all such calls are told
	slotUnsure = 0xf8 // they are not known
	slotLimbo  = 0xf9 // in a snapshot alone, as the next
	slotBack   = 0xfa
	slotBegun  = 0xfb
	slotKept   = 0xf2 // start, end: shared memory that the REMOVE to come leaves its content (advice_linux.go)
)

var errState = errors.New("pager state is damaged")

var (
	order32 = binary.NativeEndian
	order64 = binary.NativeEndian
)

// replay is the world that a state holds: its valid snapshot with the events
// of the log applied in order. b is the whole shared memory. The error is
// errState, wrapped, for anything that a pager would not have written, and ErrTaken for a state that is no longer the
// last word.
func replay(b []byte) (*world, error) {
	if len(b) < headerBytes || string(b[:8]) != stateMagic {
		return nil, fmt.Errorf("%w: no header", errState)
	}
	if v := order64.Uint64(b[8:]); v != stateVersion {
		return nil, fmt.Errorf("%w: version %d, this program knows %d", errState, v, stateVersion)
	}
	if by := order64.Uint64(b[takenOffset:]); by != 0 {
		return nil, fmt.Errorf("%w by process %d", ErrTaken, by)
	}
	turn := order64.Uint64(b[turnOffset:])
	at := b[areasOffset+16*(turn&1):]
	off, length := order64.Uint64(at), order64.Uint64(at[8:])
	if off < headerBytes || off > uint64(len(b)) || length > uint64(len(b))-off || length < 8 {
		return nil, fmt.Errorf("%w: area at %d, %d bytes", errState, off, length)
	}
	area := b[off : off+length]
	n := order64.Uint64(area)
	if n > length-8 {
		return nil, fmt.Errorf("%w: snapshot of %d bytes", errState, n)
	}
	w, err := parseSnapshot(area[8 : 8+n])
	if err != nil {
		return nil, err
	}
	return w, replayLog(w, area[min(logStart(n), length):])
}

// logStart is where the log of an area begins whose snapshot has n bytes.
func logStart(n uint64) uint64 { return (8 + n + slotBytes - 1) &^ (slotBytes - 1) }

func replayLog(w *world, log []byte) error {
	var space uint32
	var kept page.Set
	for ; len(log) >= slotBytes; log = log[slotBytes:] {
		slot := log[:slotBytes]
		switch slot[0] {
		case 0:
			return nil
		case slotSpace:
			space, kept = order64.Uint32(slot[8:]), page.Set{}
			continue
		case slotKept:
			kept.Add(page.Range{Start: page.Addr(order64.Uint64(slot[8:])), End: page.Addr(order64.Uint64(slot[16:]))})
			continue
		case slotFault:
			continue
		}
		e, err := parseSlot(slot)
		if err != nil {
			return err
		}
		e.kept = kept.Covers(e.from)
		if _, err := w.apply(space, e); err != nil {
			return fmt.Errorf("%w: %w", errState, err)
		}
	}
	return nil
}

// parseSlot is the event in a slot that holds one.
func parseSlot(slot []byte) (event, error) {
	a, b, c := order64.Uint64(slot[8:]), order64.Uint64(slot[16:]), order64.Uint64(slot[24:])
	var e event
	switch slot[0] {
	case slotFork:
		return event{kind: eventFork, fd: int(int32(uint32(a)))}, nil
	case slotCame:
		return event{kind: eventCame, fd: int(int32(uint32(a)))}, nil
	case slotDrop:
		return event{kind: eventDrop}, nil
	case slotForce:
		return event{kind: eventForce}, nil
	case slotSure, slotUnsure:
		return event{kind: eventLooked, sure: slot[0] == slotSure}, nil
	case slotMoves, slotGoes:
		e = event{kind: eventLeave, from: page.Range{Start: page.Addr(a), End: page.Addr(b)}, moves: slot[0] == slotMoves, tid: int(int32(uint32(c)))}
	case slotRemap:
		e = event{kind: eventRemap, from: page.RangeOf(page.Addr(a), c), to: page.Addr(b)}
		if page.RangeOf(e.to, c).Empty() || e.to%page.Size != 0 {
			return event{}, fmt.Errorf("%w: remap to %v", errState, e.to)
		}
	case slotRemove:
		e = event{kind: eventRemove, from: page.Range{Start: page.Addr(a), End: page.Addr(b)}}
	case slotUnmap:
		e = event{kind: eventUnmap, from: page.Range{Start: page.Addr(a), End: page.Addr(b)}}
	default:
		return event{}, fmt.Errorf("%w: slot of kind %#x", errState, slot[0])
	}
	if e.from.Empty() || e.from.Start%page.Size != 0 || e.from.End%page.Size != 0 {
		return event{}, fmt.Errorf("%w: event %#x at %v", errState, slot[0], e.from)
	}
	return e, nil
}

// A snapshot is: next id u32, spaces u32; per space: id u32, fd u32, pid u32,
// mappings u32, registered ranges u32, leaving ranges u32, slots u32, 1 as u32 if it has moved memory; per
// mapping: start, end, image address, page size with bit 0 for shared, start and end of its object, device and inode of that, u64 each; per
// range: start, end, u64 each; and slots of what is not settled (state_unsettled.go).
const (
	spaceBytes   = 32
	mappingBytes = 64
	rangeBytes   = 16
)

func snapshotBytes(w *world) int {
	n := 8
	for _, m := range w.spaces {
		n += spaceBytes + mappingBytes*len(m.byProc) + rangeBytes*(m.registered.Count()+m.leaving.Count()) + slotBytes*m.unsettledSlots()
	}
	return n
}

func appendSnapshot(b []byte, w *world) []byte {
	b = order32.AppendUint32(b, w.next)
	b = order32.AppendUint32(b, uint32(len(w.spaces)))
	for _, m := range w.spaces {
		b = appendSpace(b, m)
	}
	return b
}

func appendSpace(b []byte, m *model) []byte {
	moving := 0
	if m.moving {
		moving = 1
	}
	for _, v := range []int{int(m.id), m.fd, m.pid, len(m.byProc), m.registered.Count(), m.leaving.Count(), m.unsettledSlots(), moving} {
		b = order32.AppendUint32(b, uint32(int32(v)))
	}
	u64 := func(list ...uint64) {
		for _, v := range list {
			b = order64.AppendUint64(b, v)
		}
	}
	for _, p := range m.byProc {
		size := p.PageSize
		if p.Shared {
			size |= 1
		}
		u64(uint64(p.Start), uint64(p.End), uint64(p.Image), size, uint64(p.Object.Start), uint64(p.Object.End), p.Object.Dev, p.Object.Inode)
	}
	for _, set := range []*page.Set{&m.registered, &m.leaving} {
		for r := range set.All() {
			u64(uint64(r.Start), uint64(r.End))
		}
	}
	return m.appendUnsettled(b)
}

// parseSnapshot undoes appendSnapshot.
func parseSnapshot(b []byte) (*world, error) {
	if len(b) < 8 {
		return nil, fmt.Errorf("%w: snapshot of %d bytes", errState, len(b))
	}
	w := &world{next: order64.Uint32(b), inherited: true}
	n := order64.Uint32(b[4:])
	b = b[8:]
	for range n {
		m, rest, err := parseSpace(b)
		if err != nil {
			return nil, err
		}
		if m.id >= w.next || w.find(m.id) != nil {
			return nil, fmt.Errorf("%w: space %d of %d", errState, m.id, w.next)
		}
		w.spaces = append(w.spaces, m)
		b = rest
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("%w: %d bytes past the snapshot's end", errState, len(b))
	}
	return w, nil
}

func parseSpace(b []byte) (m *model, rest []byte, err error) {
	if len(b) < spaceBytes {
		return nil, nil, fmt.Errorf("%w: snapshot ends in a space", errState)
	}
	m = &model{id: order64.Uint32(b), fd: int(int32(order64.Uint32(b[4:]))), pid: int(int32(order64.Uint32(b[8:])))}
	maps, registered, leaving, slots := uint64(order64.Uint32(b[12:])), uint64(order64.Uint32(b[16:])), uint64(order64.Uint32(b[20:])), uint64(order64.Uint32(b[24:]))
	m.moving = order32.Uint32(b[28:]) != 0
	b = b[spaceBytes:]
	if uint64(len(b)) < maps*mappingBytes+(registered+leaving)*rangeBytes+slots*slotBytes {
		return nil, nil, fmt.Errorf("%w: snapshot ends in space %d", errState, m.id)
	}
	list := make([]page.Mapping, maps)
	for i := range list {
		size := order64.Uint64(b[24:])
		list[i] = page.Mapping{
			Range:    page.Range{Start: page.Addr(order64.Uint64(b)), End: page.Addr(order64.Uint64(b[8:]))},
			Image:    page.Addr(order64.Uint64(b[16:])),
			PageSize: size &^ 1,
			Shared:   size&1 != 0,
			Object: page.Object{
				Range: page.Range{Start: page.Addr(order64.Uint64(b[32:])), End: page.Addr(order64.Uint64(b[40:]))},
				Dev:   order64.Uint64(b[48:]), Inode: order64.Uint64(b[56:]),
			},
		}
		b = b[mappingBytes:]
	}
	if m.layout, err = newLayout(list); err != nil {
		return nil, nil, fmt.Errorf("%w: space %d: %w", errState, m.id, err)
	}
	if m.shared { // for all that the snapshot says
		m.emptied = page.SetOf(page.Range{End: ^page.Addr(page.Size - 1)})
	}
	for i := range registered + leaving {
		r := page.Range{Start: page.Addr(order64.Uint64(b)), End: page.Addr(order64.Uint64(b[8:]))}
		if r.Empty() {
			return nil, nil, fmt.Errorf("%w: space %d: range %v", errState, m.id, r)
		}
		if i < registered {
			m.registered.Add(r)
		} else {
			m.leaving.Add(r)
		}
		b = b[rangeBytes:]
	}
	for range slots {
		if err := m.parseUnsettled(b[:slotBytes]); err != nil {
			return nil, nil, err
		}
		b = b[slotBytes:]
	}
	return m, b, nil
}
