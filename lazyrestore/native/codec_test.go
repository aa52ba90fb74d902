package native

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// sampleSections has something in every section beside.
func sampleSections() *State {
	st := sample()
	st.Session = Session{ID: 12, Group: 34, Terminal: true, Stopped: true}
	st.Modes = append(make(TerminalModes, termiosSize-1), 3)
	st.MemoryMerge, st.THPFlags = 1, 2
	th := &st.Threads[0]
	th.Sched = Sched{Flags: 1, Runtime: 2, Deadline: 3, Period: 4, UtilMin: 5, UtilMax: 6}
	th.IOPriority, th.TimerSlack, th.MemPolicy = 7, 8, MemPolicy{Mode: 3, Nodes: []uint64{1}}
	th.Sleep = Sleep{Call: 8, Left: 1000}
	th.Switches = Switches{NoTSC: 1, NoCPUID: 1, MCEKill: 2, IOFlusher: 1, DeathSig: 9}
	st.Opens = append(st.Opens, Open{Kind: OpenTimerFD, Count: 3, Owner: 1<<32 | 4711, Signal: 10}, Open{Kind: OpenInotify}, Open{Kind: OpenSocket}, Open{Kind: OpenTerminal})
	st.Locks = []Lock{{Open: 1, Kind: LockOFD, Write: true, Start: 5, Len: 7}}
	st.TimerFDs = []Timer{{Open: 2, Clock: 1, Flags: 1, Interval: 2, Value: 3, Wall: 4}}
	st.FileWatches = []FileWatch{{Open: 3, WD: 2, Mask: 0x100, Path: "/tmp"}}
	st.Displaced = []Displaced{{Open: 1, Index: 0, Target: 0}}
	st.Sockets = []Socket{{Open: 4, Family: 1, Type: 2, Protocol: 3, Name: []byte{1, 0}, Backlog: 5, Pair: true, Shutdown: 3, Options: []SocketOption{{1, 2, []byte{3}}}, Queue: [][]byte{{1}}, Mode: 6, UID: 7, GID: 8}}
	st.Policies = []RangePolicy{{st.VMAs[0].Range, MemPolicy{Mode: 2, Nodes: []uint64{1}}}}
	st.Locked, st.LockFuture = []LockedRange{{st.VMAs[0].Range, true}}, futureOnFault
	st.Shared[0].More = More{Seals: 3, Mode: 0o100640, UID: 1, GID: 2, Dir: "/d", Path: "/p", MTime: 5, Mapped: true}
	return st
}

// sample has something in every field of the fixed part that a list can have
// more than one of. It is what testdata/v1 holds, and does not change.
func sample() *State {
	return &State{
		Arch: "amd64", PID: 4711, Comm: "prog", Exe: Mapped{"/bin/prog", 123, 456}, Cwd: "/tmp",
		Umask: 0o22, Dumpable: 1, OOMScore: -500, Membarrier: 1 << 4, XFeatures: 7, NoNewPrivs: true,
		Creds:  Creds{UID: [4]uint32{1, 2, 3, 4}, Groups: []uint32{5, 6}, Eff: 1 << 40},
		MM:     MM{StartCode: 1, EndCode: 2, EnvEnd: 1 << 46},
		Auxv:   []byte{1, 2, 3},
		VDSO:   VDSO{Map: 0x7000, Text: page.Range{Start: 0x9000, End: 0xb000}, Size: 0x4000, Sum: "ab"},
		Limits: []Limit{{1, 2}, {^uint64(0), ^uint64(0)}}, Actions: []Action{{1, 2, 3, 4}},
		Pending: [][]byte{siginfo(1), siginfo(34)}, Files: []Mapped{{"/lib/x", 1, 2}},
		VMAs: []VMA{
			{Range: page.Range{Start: 0x10000, End: 0x20000}, Kind: Anonymous, Prot: 3, Lazy: []page.Range{{Start: 0x11000, End: 0x12000}}},
			{Range: page.Range{Start: 0x30000, End: 0x40000}, Kind: SharedMemory, Name: "n", Offset: 4096, Write: true},
		},
		Shared: []SharedObject{{Name: "shm", Size: 5000, Image: page.ImageShared, Lazy: true}},
		Opens: []Open{
			{Kind: OpenPipe, Pipe: 7, Data: []byte("unread"), Size: 65536},
			{Kind: OpenEpoll, Watches: []Watch{{3, 1, 99}}},
		},
		FDs:      []FD{{0, 0, false}, {5, 1, true}},
		Threads:  []Thread{{TID: 4711, Comm: "t", Regs: proc.Regs{1, 2, 3}, XState: []byte{9}, Affinity: []uint64{3}, Nice: -5, RSeq: RSeq{1, 2, 3, 4}}},
		Eager:    []Eager{{page.Range{Start: 0, End: 0x2000}, 1}},
		EagerSum: 0xdeadbeef, LazyBytes: 4096, EagerBytes: 8192,
		Huge: []page.Range{{Start: 0x200000, End: 0x400000}}, Guards: []page.Range{{Start: 0x15000, End: 0x16000}},
	}
}

func siginfo(sig byte) []byte {
	b := make([]byte, proc.SiginfoSize)
	b[0] = sig
	return b
}

func TestStateRoundTrip(t *testing.T) {
	for _, want := range []*State{sample(), sampleSections()} {
		got, err := DecodeState(want.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("state differs (-want +got):\n%s", diff)
		}
	}
}

func TestStateCutOff(t *testing.T) {
	b := sampleSections().Encode()
	sections := len(sample().Encode()) // what is cut off between two of them says less
	for n := range b {
		if n >= sections {
			_, _ = DecodeState(b[:n])
			continue
		}
		if _, err := DecodeState(b[:n]); err == nil {
			t.Fatalf("the first %d of %d bytes were accepted", n, len(b))
		}
	}
	if _, err := DecodeState(append(b, 0)); err == nil {
		t.Error("a byte behind the end was accepted")
	}
}

// What the first version wrote is read for ever.
func TestStateVersion1(t *testing.T) {
	b, err := os.ReadFile("testdata/v1/process.bin")
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeState(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sample(), got); diff != "" {
		t.Errorf("state differs (-want +got):\n%s", diff)
	}
}

// Early builds had memory registered beyond the end of a shared object, where the image has the next one.
func TestLazyEndsWithItsObject(t *testing.T) {
	st := sample()
	v := &st.VMAs[slices.IndexFunc(st.VMAs, func(v VMA) bool { return v.Kind == SharedMemory })]
	st.Shared[v.File].Size = v.Offset + page.Size + 1
	begin, beyond := page.RangeOf(v.Start, page.Size), page.RangeOf(v.Start+page.Size, 4*page.Size)
	v.Lazy = []page.Range{begin, beyond, {Start: beyond.End + page.Size, End: v.End}}
	got, err := DecodeState(st.Encode())
	if err != nil {
		t.Fatal(err)
	}
	want := []page.Range{begin, page.RangeOf(beyond.Start, page.Size)}
	if diff := cmp.Diff(want, got.VMAs[slices.IndexFunc(got.VMAs, func(v VMA) bool { return v.Kind == SharedMemory })].Lazy); diff != "" {
		t.Error(diff)
	}

	// What a pager says is missing there is not of this object either.
	k := &content{c: &capture{st: st}, owed: []page.Mapping{{Range: v.Range, Image: page.ImageShared, PageSize: page.Size, Shared: true}}}
	pieces := k.sharedPieces(&object{index: v.File}, new(page.Set))
	if len(pieces) != 1 || pieces[0].Range != page.RangeOf(page.Addr(v.Offset), 2*page.Size) { // of the object
		t.Errorf("pieces %+v", pieces)
	}
}

func TestStateSections(t *testing.T) {
	plain := sample().Encode()
	for _, tt := range []struct {
		name string
		more []byte
		want error
		at   int
	}{
		{"unknown", []byte{127, 1, 7}, image.ErrVersion, 0},
		{"cut off", []byte{127, 2, 7}, errState, 2},
		{"number zero", []byte{0, 0}, errState, 2},
		{"in it", []byte{64, 4, 1, 1, 7, 0}, errState, 5},
	} {
		_, err := DecodeState(append(slices.Clip(plain), tt.more...))
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		var damage *image.DamagedError
		if errors.As(err, &damage) != (tt.at != 0) || tt.at != 0 && damage.Offset != int64(len(plain)+tt.at) {
			t.Errorf("%s: %v, want the damage %d bytes behind %d", tt.name, err, tt.at, len(plain))
		}
	}
}

// badEager is a state whose list of eager pages is not one that a checkpoint makes.
func badEager(bytes uint64, list ...Eager) *State {
	st := sample()
	st.VMAs = []VMA{{Range: page.RangeOf(0x10000, 1<<46), Kind: Anonymous, Prot: 3}}
	st.Guards, st.Eager, st.EagerBytes = nil, list, bytes
	return st
}

func TestBadEager(t *testing.T) {
	whole, some := Eager{Range: page.RangeOf(0x10000, 1<<46)}, Eager{Range: page.RangeOf(0x20000, 1<<20)}
	for _, tt := range []struct {
		name string
		st   *State
		want error
	}{
		{"none", badEager(0), nil},
		{"out of order", badEager(2<<20, Eager{Range: page.RangeOf(0x200000, 1<<20)}, some), nil},
		{"a sum beyond 64 bits", badEager(1<<20, append(slices.Repeat([]Eager{whole}, 1<<18), some)...), errState},
		{"twice", badEager(2<<20, some, some), errState},
		{"overlapping", badEager(1<<46+1<<20, some, whole), errState},
		{"empty", badEager(0, Eager{Range: page.RangeOf(0x20000, 0)}), errState},
		{"more than told", badEager(4096, some), errState},
		{"fewer than told", badEager(2<<20, some), errState},
		{"not mapped", badEager(8192, Eager{Range: page.RangeOf(0xf000, 8192)}), errState},
		{"of no object", badEager(4096, Eager{page.RangeOf(0, 4096), 2}), errState},
		{"twice in an object", badEager(8192, Eager{page.RangeOf(0, 4096), 1}, Eager{page.RangeOf(0, 4096), 1}), errState},
	} {
		if _, err := DecodeState(tt.st.Encode()); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

func FuzzDecodeState(f *testing.F) {
	f.Add(sample().Encode())
	f.Add(sampleSections().Encode())
	f.Add([]byte(stateMagic))
	some := Eager{Range: page.RangeOf(0x20000, 1<<20)}
	f.Add(badEager(2<<20, some, some).Encode())
	f.Add(badEager(1<<20, some, some).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := DecodeState(b)
		if err != nil {
			return
		}
		st.partEager()
		again, err := DecodeState(st.Encode())
		if err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
		if !bytes.Equal(st.Encode(), again.Encode()) {
			t.Fatal("encoding is not stable")
		}
	})
}
