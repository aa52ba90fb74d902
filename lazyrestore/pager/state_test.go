package pager

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// write puts e into the log as the kernel would, amid faults.
func (j *journal) write(t *rapid.T, space uint32, e event) {
	var kept []page.Range
	if e.kept {
		kept = []page.Range{e.from}
	}
	slots := j.slots(space, kept)
	n := rapid.IntRange(0, batch-1).Draw(t, "faults before")
	for i := range slots {
		clear(slotOf(&slots[i]))
	}
	for i := range n {
		slotOf(&slots[i])[0] = slotFault
	}
	b := slotOf(&slots[n])
	switch e.kind {
	case eventFork:
		order32.PutUint32(b[8:], uint32(e.fd))
		b[0] = slotFork
	case eventRemap:
		order64.PutUint64(b[8:], uint64(e.from.Start))
		order64.PutUint64(b[16:], uint64(e.to))
		order64.PutUint64(b[24:], e.from.Len())
		b[0] = slotRemap
	case eventRemove, eventUnmap:
		order64.PutUint64(b[8:], uint64(e.from.Start))
		order64.PutUint64(b[16:], uint64(e.from.End))
		b[0] = slotRemove + byte(e.kind-eventRemove)
	case eventDrop, eventCame, eventForce, eventLeave, eventLooked:
		t.Fatal("nothing tells of those but the journal itself")
	}
	if n+1 < len(slots) {
		slotOf(&slots[n+1])[0] = slotFault // left behind for the next batch
	}
	j.keep(n + 1)
}

// bytes is the whole state, as a successor would map it.
func (j *journal) bytes(t *rapid.T) []byte {
	b, err := unix.Mmap(j.file, 0, int(j.size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(b) }()
	return slices.Clone(b)
}

// plainWorld is w in a form to be compared.
func plainWorld(w *world) any {
	type space struct {
		ID         uint32
		FD, Pid    int
		Maps       []page.Mapping
		Registered []page.Range
		Leaving    []page.Range
		Unsettled  string
	}
	var list []space
	for _, m := range w.spaces {
		list = append(list, space{m.id, m.fd, m.pid, append([]page.Mapping(nil), m.byProc...), slices.Collect(m.registered.All()), slices.Collect(m.leaving.All()), fmt.Sprint(m.moving, m.held, m.fresh, m.calls, m.begun, plainVacant(m.vacant))})
	}
	return list
}

func plainVacant(list []vacancy) string {
	var b strings.Builder
	for _, v := range list {
		fmt.Fprintln(&b, v.leave, v.slot, v.back.byProc)
	}
	return b.String()
}

// drawSaid is something about what m has not settled.
func drawSaid(t *rapid.T, m *model) event {
	e := event{kind: rapid.SampledFrom([]eventKind{eventForce, eventLeave, eventLooked, eventLooked}).Draw(t, "said")}
	switch e.kind {
	case eventLooked:
		e.sure = rapid.Bool().Draw(t, "sure")
	case eventLeave:
		e.from, e.moves = pages(t, testBase), rapid.Bool().Draw(t, "moves")
		if len(m.fresh) == 0 {
			break
		}
		switch f := rapid.SampledFrom(m.fresh).Draw(t, "fresh"); {
		case f.kind != eventRemap:
		case rapid.Bool().Draw(t, "there"):
			e.from = f.into()
		default: // its own
			e.from, e.moves = f.from, true
		}
	default:
	}
	return e
}

// Whatever happens, and however often the log is compacted: a successor that
// replays the state sees the world that the pager lived in.
func TestReplayIsTheWorld(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{}
		w.add(3, 77, drawLayout(t))
		j, err := newJournal(w)
		if err != nil {
			t.Fatal(err)
		}
		defer j.close()
		for range rapid.IntRange(0, 40).Draw(t, "events") {
			if len(w.spaces) == 0 {
				break
			}
			id := rapid.SampledFrom(w.spaces).Draw(t, "space").id
			if err := j.room(w); err != nil {
				t.Fatal(err)
			}
			e := drawEvent(t)
			switch rapid.IntRange(0, 9).Draw(t, "note") {
			case 0:
				e = event{kind: eventDrop}
				j.drop(id)
			case 1, 2, 3, 4:
				e = drawSaid(t, w.find(id))
				j.say(id, e)
			default:
				j.write(t, id, e)
			}
			if _, err := w.apply(id, e); err != nil {
				t.Fatal(err)
			}
			got, err := replay(j.bytes(t))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(plainWorld(w), plainWorld(got)); diff != "" {
				t.Fatalf("replay (-lived +replayed):\n%s", diff)
			}
			if got.next != w.next {
				t.Fatalf("next space %d, want %d", got.next, w.next)
			}
		}
	})
}

// A state is found out if it is not one.
func TestReplayRefuses(t *testing.T) {
	w := &world{}
	j, err := newJournal(w)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	good := make([]byte, j.size)
	if _, err := unix.Pread(j.file, good, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := replay(good); err != nil {
		t.Fatal(err)
	}
	log := headerBytes + int(logStart(uint64(snapshotBytes(w))))
	tests := []struct {
		name   string
		change func(b []byte) []byte
	}{
		{"empty", func([]byte) []byte { return nil }},
		{"magic", func(b []byte) []byte { b[0]++; return b }},
		{"version", func(b []byte) []byte { b[8]++; return b }},
		{"area", func(b []byte) []byte { return b[:headerBytes] }},
		{"turn", func(b []byte) []byte { b[turnOffset]++; return b }},
		{"snapshot length", func(b []byte) []byte { b[headerBytes+6] = 1; return b }},
		{"spaces", func(b []byte) []byte { b[headerBytes+12] = 9; return b }},
		{"slot", func(b []byte) []byte { b[log] = 0x77; return b }},
		{"event of nobody", func(b []byte) []byte { b[log] = slotDrop; return b }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := replay(tt.change(slices.Clone(good))); !errors.Is(err, errState) {
				t.Errorf("replay = %v, want errState", err)
			}
		})
	}
}

// FuzzReplay: no bytes make it panic, and what it accepts it can write again.
func FuzzReplay(f *testing.F) {
	w := &world{}
	l, err := newLayout([]page.Mapping{{Range: page.RangeOf(testBase, 8*page.Size), Image: testBase, PageSize: page.Size}})
	if err != nil {
		f.Fatal(err)
	}
	w.add(3, 1, l)
	j, err := newJournal(w)
	if err != nil {
		f.Fatal(err)
	}
	b := make([]byte, j.size)
	if _, err := unix.Pread(j.file, b, 0); err != nil {
		f.Fatal(err)
	}
	j.close()
	f.Add(b[headerBytes:])
	f.Fuzz(func(t *testing.T, area []byte) {
		b := make([]byte, headerBytes, headerBytes+len(area))
		copy(b, stateMagic)
		order64.PutUint64(b[8:], stateVersion)
		order64.PutUint64(b[areasOffset:], headerBytes)
		order64.PutUint64(b[areasOffset+8:], uint64(len(area)))
		w, err := replay(append(b, area...))
		if err != nil {
			return
		}
		again, err := parseSnapshot(appendSnapshot(nil, w))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(plainWorld(w), plainWorld(again)); diff != "" {
			t.Fatalf("written and parsed again (-want +got):\n%s", diff)
		}
	})
}

// An index that is said to be larger than memory is no end of the program.
func TestArenaHasNoSuchMemory(t *testing.T) {
	var a arena
	defer a.free()
	a.reserve(1 << 50)
	if b := a.alloc(arenaSmall); len(b) != arenaSmall {
		t.Errorf("%d bytes, want %d", len(b), arenaSmall)
	}
}
