package client

import (
	"bytes"
	"testing"
)

// deliver has n bytes come, each of which says where it is.
func deliver(b *block, n int) {
	for n > 0 {
		room := b.next(n)
		for i := range room {
			room[i] = byte(b.got + i)
		}
		n -= len(room)
		b.came(len(room))
	}
}

// said is what the bytes of a span are.
func said(s span) []byte {
	p := make([]byte, s.to-s.from)
	for i := range p {
		p[i] = byte(s.from + i)
	}
	return p
}

// What is waited for is received where it is wanted, what was not is kept, and what has
// been received elsewhere is not there any more.
func TestBlockWants(t *testing.T) {
	b := newBlock("pages.lz4", 0, 100, &ahead{})
	want := func(s span) *want { return b.want(s, make([]byte, s.to-s.from)) }
	later := want(span{40, 60})
	deliver(b, 20)
	soon := want(span{10, 30}) // half of it is kept
	for s, free := range map[span]bool{{15, 35}: false, {20, 25}: false, {50, 70}: false, {30, 41}: false, {30, 40}: true, {0, 20}: true} {
		if b.free(s) != free {
			t.Errorf("%v: free is %v, beside %v and %v", s, !free, soon.span, later.span)
		}
	}
	if closed(soon.done) {
		t.Error("it is said to be there, and is not")
	}
	deliver(b, 30)
	if !closed(soon.done) || closed(later.done) {
		t.Errorf("with %d bytes, %v has come: %v, %v: %v", b.got, soon.span, closed(soon.done), later.span, closed(later.done))
	}
	copy(soon.p, b.kept[soon.from:soon.direct])
	if !bytes.Equal(soon.p, said(soon.span)) {
		t.Errorf("%v is %v", soon.span, soon.p)
	}
	if gone := want(span{90, 95}); !gone.withdraw() {
		t.Error("nobody receives it, and it cannot be withdrawn")
	}
	deliver(b, 50)
	if !closed(later.done) || !bytes.Equal(later.p, said(later.span)) {
		t.Errorf("%v is %v", later.span, later.p)
	}
	for s, held := range map[span]bool{{0, 20}: true, {20, 30}: false, {30, 40}: true, {35, 45}: false, {60, 100}: true, {90, 95}: true} {
		if b.holds(s) != held || b.free(s) != held {
			t.Errorf("%v: it is held: %v, want %v", s, b.holds(s), held)
		}
		if held && !bytes.Equal(b.kept[s.from:s.to], said(s)) {
			t.Errorf("%v is %v", s, b.kept[s.from:s.to])
		}
	}
}

// What is being received to is left alone.
func TestBlockBeingReceived(t *testing.T) {
	b := newBlock("pages.lz4", 0, 100, &ahead{})
	first := b.want(span{0, 30}, make([]byte, 30))
	b.next(100)
	if first.withdraw() {
		t.Error("it can be withdrawn while it is received to")
	}
	if b.free(span{10, 50}) {
		t.Error("what somebody else receives is free")
	}
	b.came(10)
	if !first.withdraw() {
		t.Error("it cannot be withdrawn between two receipts")
	}
	b.next(10)
	second := b.want(span{15, 40}, make([]byte, 25))
	b.came(10)
	deliver(b, 80)
	copy(second.p, b.kept[15:second.direct])
	if second.direct != 20 || !bytes.Equal(second.p[5:], said(span{20, 40})) {
		t.Errorf("received from %d on: %v", second.direct, second.p)
	}
}
