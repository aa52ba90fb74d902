package pager

import (
	"fmt"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// What is not settled, in a snapshot: a slot for each event that is held, and for each that
// is fresh, as it was told, with flags in its second byte; one for each call that was seen; a slotBegun for
// each move of which the end may not be told (start, end, thread); and a slotLimbo for
// each vacancy (start, end, where in limbo, with bit 8 if it is to be told where to, and the thread from bit 32 on), followed by a
// slotBack for each part of where its memory would be without the call (start, end, address in limbo).
const (
	flagKept  = 1 << iota // shared memory keeps its content
	flagFresh             // the event is fresh
	flagStays             // the memory stays mapped where it moves away

	flagMoves = 1 << 8 // of a vacancy
)

// unsettledSlots is how many slots that takes.
func (m *model) unsettledSlots() int {
	n := len(m.held) + len(m.fresh) + len(m.calls) + len(m.begun) + len(m.vacant)
	for i := range m.vacant {
		n += len(m.vacant[i].back.byProc)
	}
	return n
}

func (m *model) appendUnsettled(b []byte) []byte {
	slot := func(kind int, words ...uint64) {
		b = order64.AppendUint64(b, uint64(kind))
		for i := range 3 {
			v := uint64(0)
			if i < len(words) {
				v = words[i]
			}
			b = order64.AppendUint64(b, v)
		}
	}
	told := func(e event, flags int) {
		if e.kept {
			flags |= flagKept
		}
		if e.stays {
			flags |= flagStays
		}
		switch e.kind {
		case eventRemap:
			slot(slotRemap|flags<<8, uint64(e.from.Start), uint64(e.to), e.from.Len())
		case eventRemove:
			slot(slotRemove|flags<<8, uint64(e.from.Start), uint64(e.from.End))
		default:
			slot(slotUnmap|flags<<8, uint64(e.from.Start), uint64(e.from.End))
		}
	}
	for _, e := range m.held {
		told(e, 0)
	}
	for _, e := range m.fresh {
		told(e, flagFresh)
	}
	for _, l := range m.calls {
		kind := slotGoes
		if l.moves {
			kind = slotMoves
		}
		slot(kind, uint64(l.Start), uint64(l.End), uint64(l.tid))
	}
	for _, l := range m.begun {
		slot(slotBegun, uint64(l.Start), uint64(l.End), uint64(l.tid))
	}
	for i := range m.vacant {
		v := &m.vacant[i]
		where := uint64(v.slot) | uint64(v.tid)<<32
		if v.moves {
			where |= flagMoves
		}
		slot(slotLimbo, uint64(v.Start), uint64(v.End), where)
		for _, p := range v.back.byProc {
			slot(slotBack, uint64(p.Start), uint64(p.End), uint64(p.Image))
		}
	}
	return b
}

// parseUnsettled undoes appendUnsettled, for one slot.
func (m *model) parseUnsettled(b []byte) error {
	if b[0] == slotLimbo || b[0] == slotBack || b[0] == slotBegun {
		return m.parseRange(b)
	}
	e, err := parseSlot(b)
	if err != nil {
		return err
	}
	e.kept, e.stays = b[1]&flagKept != 0, b[1]&flagStays != 0
	switch {
	case e.kind == eventLeave:
		m.calls = append(m.calls, leave{e.from, e.moves, e.tid})
	case e.kind != eventRemap && e.kind != eventRemove && e.kind != eventUnmap:
		return fmt.Errorf("%w: event %d of space %d is held", errState, e.kind, m.id)
	case b[1]&flagFresh != 0:
		m.fresh = append(m.fresh, e)
	default:
		m.held = append(m.held, e)
	}
	return nil
}

func (m *model) parseRange(b []byte) error {
	r := page.Range{Start: page.Addr(order64.Uint64(b[8:])), End: page.Addr(order64.Uint64(b[16:]))}
	last, where := len(m.vacant)-1, order64.Uint64(b[24:])
	if r.Empty() || r.Start%page.Size != 0 || r.End%page.Size != 0 {
		return fmt.Errorf("%w: space %d: limbo of %v", errState, m.id, r)
	}
	if b[0] == slotBegun {
		m.begun = append(m.begun, leave{r, true, int(int32(uint32(where)))})
		return nil
	}
	if b[0] == slotLimbo {
		slot, tid := where&^flagMoves&(1<<32-1), int(int32(where>>32))
		if slot < 1 || slot > maxLimbo || r.End > limboStep {
			return fmt.Errorf("%w: space %d: %v in limbo at %d", errState, m.id, r, slot)
		}
		m.vacant = append(m.vacant, vacancy{leave: leave{r, where&flagMoves != 0, tid}, slot: uint8(slot)})
		return nil
	}
	back := page.Mapping{Range: r, Image: page.Addr(where), PageSize: page.Size}
	if last < 0 || !m.vacant[last].limbo().Contains(back.Image) || back.ImageRange().End > m.vacant[last].limbo().End || m.vacant[last].back.fills(r) {
		return fmt.Errorf("%w: space %d: %v would be at %v", errState, m.id, r, back.Image)
	}
	m.vacant[last].back.insert(back)
	return nil
}
