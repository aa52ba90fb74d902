package wire

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// A sample is a message, the side that reads it, and what its body parses to.
type sample struct {
	name  string
	side  Side
	bytes []byte
	want  any
	flags uint8
}

func samples() []sample {
	fields := Fields(nil).Append(TagAgent, []byte("test 1")).Append(FirstCapability+7, nil)
	ch := ClientHello{Version: Version, Client: [16]byte{1, 2, 3}, Fields: fields}
	sh := ServerHello{Version: Version, Server: [16]byte{4}, Limits: Limits{MinRead, MinRequests, MinImages}, IdleTime: 60000, Fields: fields}
	open := Open{Image: 7, Name: "lammps", Fields: fields}
	read := Read{Image: 7, Length: 65536, Offset: 1 << 40, Object: "pages.lz4"}
	list := List{After: "a"}
	fail := &Error{Code: CodeNoImage, Text: "no image lammps"}
	opened := &Opened{Image: 7, Digest: [32]byte{9}, Objects: []Object{{"eager.raw", 0}, {"pages.lz4", 1<<62 + 1}}, Fields: fields}
	listed := &Listed{Images: []Image{{Name: "a", Size: 1, Digest: [32]byte{3}}, {Name: strings.Repeat("b", MaxName)}}}
	return []sample{
		{"client hello", Server, ch.Append(nil), ch, 0},
		{"server hello", Client, sh.Append(nil), sh, 0},
		{"open", Server, open.Append(nil, 5), open, 0},
		{"read", Server, read.Append(nil, 5, FlagBackground|FlagShort), read, FlagBackground | FlagShort},
		{"close", Server, AppendClose(nil, 5, 7), uint32(7), 0},
		{"list", Server, list.Append(nil, 5), list, 0},
		{"ping", Server, AppendPing(nil, 5), nil, 0},
		{"cancel", Server, AppendCancel(nil, 5), nil, 0},
		{"done", Client, AppendDone(nil, 5), nil, 0},
		{"error", Client, fail.Append(nil, 5), fail, 0},
		{"opened", Client, opened.Append(nil, 5), opened, 0},
		{"listed", Client, listed.Append(nil, 5, FlagLast), listed, FlagLast},
		{"goaway", Client, AppendGoaway(nil, "bye"), "bye", 0},
		{"data", Client, append(AppendData(nil, 5, FlagLast, Data{3, 10, 4}), "abcd"...), Data{3, 10, 4}, FlagLast},
	}
}

// parse takes the body of any message apart.
func parse(side Side, m Message) (any, error) {
	switch m.Type {
	case TypeHello:
		if side == Server {
			return ParseClientHello(m.Body)
		}
		return ParseServerHello(m.Body)
	case TypeOpen:
		return ParseOpen(m.Body)
	case TypeRead:
		return ParseRead(m.Body)
	case TypeClose:
		return ParseClose(m.Body)
	case TypeList:
		return ParseList(m.Body)
	case TypeError:
		return ParseError(m.Body)
	case TypeOpened:
		return ParseOpened(m.Body)
	case TypeListed:
		return ParseListed(m.Body)
	case TypeGoaway:
		return ParseGoaway(m.Body)
	case TypeData:
		if side == Client {
			return m.Data, nil
		}
	case TypePing, TypeCancel, TypeDone:
	}
	return nil, nil
}

// again appends what parse gave.
func again(m Message, v any) []byte {
	switch v := v.(type) {
	case ClientHello:
		return v.Append(nil)
	case ServerHello:
		return v.Append(nil)
	case Open:
		return v.Append(nil, m.ID)
	case Read:
		return v.Append(nil, m.ID, m.Flags)
	case uint32:
		return AppendClose(nil, m.ID, v)
	case List:
		return v.Append(nil, m.ID)
	case *Error:
		return v.Append(nil, m.ID)
	case *Opened:
		return v.Append(nil, m.ID)
	case *Listed:
		return v.Append(nil, m.ID, m.Flags)
	case string:
		return AppendGoaway(nil, v)
	case Data:
		return AppendData(nil, m.ID, m.Flags, v)
	}
	return nil
}

func TestRoundTrip(t *testing.T) {
	for _, s := range samples() {
		t.Run(s.name, func(t *testing.T) {
			d := NewDecoder(bytes.NewReader(s.bytes), s.side, 16)
			m, err := d.Next()
			if err != nil {
				t.Fatal(err)
			}
			if m.Flags != s.flags {
				t.Errorf("flags %#x, want %#x", m.Flags, s.flags)
			}
			got, err := parse(s.side, m)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(s.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if m.Type == TypeData {
				p := make([]byte, 4)
				if err := d.ReadPayload(p); err != nil || string(p) != "abcd" {
					t.Errorf("payload %q, %v", p, err)
				}
			}
			if _, err := d.Next(); !errors.Is(err, io.EOF) {
				t.Errorf("after the message: %v, want EOF", err)
			}
		})
	}
}

// Every bit of a message matters, but for the payload, and so does each of its
// bytes being there.
func TestDamage(t *testing.T) {
	for _, s := range samples() {
		t.Run(s.name, func(t *testing.T) {
			covered := len(s.bytes)
			if _, ok := s.want.(Data); ok {
				covered = HeaderSize + DataSize
			}
			for i := range covered * 8 {
				b := bytes.Clone(s.bytes)
				b[i/8] ^= 1 << (i % 8)
				d := NewDecoder(bytes.NewReader(b), s.side, 64)
				if m, err := d.Next(); !errors.Is(err, ErrMalformed) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("bit %d flipped: %+v, %v", i, m, err)
				}
			}
			for n := 1; n < covered; n++ {
				if _, err := NewDecoder(bytes.NewReader(s.bytes[:n]), s.side, 64).Next(); !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("the first %d bytes: %v, want %v", n, err, io.ErrUnexpectedEOF)
				}
			}
		})
	}
}

// A length is held against its limit before memory is taken for it.
func TestLengths(t *testing.T) {
	for _, tt := range []struct {
		name  string
		side  Side
		typ   Type
		limit int
	}{
		{"request", Server, TypeRead, MaxRequest},
		{"unknown request", Server, 0x60, MaxRequest},
		{"reply to a server", Server, TypeData, MaxRequest},
		{"hello", Client, TypeHello, MaxRequest},
		{"reply", Client, TypeListed, MaxReply},
		{"unknown reply", Client, 0xf0, MaxReply},
		{"data", Client, TypeData, MaxData + DataSize},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, n := range []uint32{uint32(tt.limit) + 1, 1<<32 - 1} {
				b := appendHeader(nil, tt.typ, 0, 1)
				b[0], b[1], b[2], b[3] = byte(n), byte(n>>8), byte(n>>16), byte(n>>24)
				d := NewDecoder(bytes.NewReader(b), tt.side, 64)
				if _, err := d.Next(); !errors.Is(err, ErrMalformed) || cap(d.body) > 0 {
					t.Errorf("a body of %d bytes: %v, %d bytes of memory", n, err, cap(d.body))
				}
			}
			b := finish(append(appendHeader(nil, tt.typ, 0, 1), make([]byte, DataSize)...), 0, tt.limit-DataSize)
			if tt.typ != TypeData || tt.side == Server {
				b = finish(append(appendHeader(nil, tt.typ, 0, 1), make([]byte, tt.limit)...), 0, 0)
			}
			if _, err := NewDecoder(bytes.NewReader(b), tt.side, 64).Next(); err != nil && tt.typ != TypeData {
				t.Errorf("a body as long as it may be: %v", err)
			}
		})
	}
}

// What is behind a DATA is found whether or not its payload is read.
func TestPayloadIsPassedOver(t *testing.T) {
	var stream []byte
	for i := range 4 {
		stream = append(AppendData(stream, uint32(i+1), 0, Data{0, 1000, 1000}), bytes.Repeat([]byte{byte(i)}, 1000)...)
	}
	d := NewDecoder(bytes.NewReader(stream), Client, 64)
	for i, n := range []int{0, 1, 999, 1000} {
		m, err := d.Next()
		if err != nil || m.ID != uint32(i+1) {
			t.Fatalf("message %d: %+v, %v", i, m, err)
		}
		p := make([]byte, n)
		if err := d.ReadPayload(p); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{byte(i)}, n)) {
			t.Fatalf("payload %d: %v", i, err)
		}
		if err := d.ReadPayload(make([]byte, 1001-n)); err == nil {
			t.Fatal("more payload than there is")
		}
	}
	if _, err := d.Next(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

// ReadSome gives what one read of the stream does, and no more than is left.
func TestReadSome(t *testing.T) {
	want := bytes.Repeat([]byte("some"), 250)
	stream := append(AppendData(nil, 1, 0, Data{0, 1000, 1000}), want...)
	for name, cut := range map[string]int{"whole": len(stream), "cut": len(stream) - 1} {
		d := NewDecoder(iotest.HalfReader(bytes.NewReader(stream[:cut])), Client, 64)
		if _, err := d.Next(); err != nil {
			t.Fatal(err)
		}
		if _, err := d.ReadSome(make([]byte, 1001)); err == nil {
			t.Error("more payload than there is")
		}
		var got []byte
		var err error
		for p := make([]byte, 1000); err == nil && len(got) < 1000; {
			var n int
			n, err = d.ReadSome(p[:1000-len(got)])
			got = append(got, p[:n]...)
		}
		switch {
		case name == "whole" && (err != nil || !bytes.Equal(got, want)):
			t.Errorf("payload of %d bytes, %v", len(got), err)
		case name == "cut" && !errors.Is(err, io.ErrUnexpectedEOF):
			t.Errorf("the end within a payload: %v", err)
		}
	}
}

func TestBadBodies(t *testing.T) {
	long := Open{Name: strings.Repeat("x", MaxName)}.Append(nil, 1)[HeaderSize:]
	for _, tt := range []struct {
		name string
		typ  Type
		body string
	}{
		{"hello without magic", TypeHello, "lzrpagez\x01\x00\x00\x00" + strings.Repeat("\x00", 16)},
		{"hello with reserved bytes", TypeHello, Magic + "\x01\x00\x01\x00" + strings.Repeat("\x00", 16)},
		{"half a tag", TypeOpen, string(long) + "\x01\x00\x00"},
		{"field beyond the end", TypeOpen, string(long) + "\x01\x00\x02\x00a"},
		{"name beyond the end", TypeList, "\x05abcd"},
		{"negative offset", TypeRead, strings.Repeat("\x00", 15) + "\x80\x01a"},
		{"object name too long", TypeRead, strings.Repeat("\x00", 16) + "\x41" + strings.Repeat("a", 65)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := Message{Header: Header{Type: tt.typ}, Body: []byte(tt.body)}
			if v, err := parse(Server, m); !errors.Is(err, ErrMalformed) {
				t.Errorf("%+v, %v", v, err)
			}
		})
	}
	h, err := ParseClientHello([]byte(Magic + "\x02\x00????"))
	if !errors.Is(err, ErrVersion) || errors.Is(err, ErrMalformed) || h.Version != 2 {
		t.Errorf("a HELLO of version 2: %+v, %v", h, err)
	}
	low := ServerHello{Version: Version, Limits: Limits{MinRead - 1, MinRequests, MinImages}}
	if _, err := ParseServerHello(low.Append(nil)[HeaderSize:]); !errors.Is(err, ErrMalformed) {
		t.Errorf("limits that are too low: %v", err)
	}
}

func TestOpenedBytes(t *testing.T) {
	for _, names := range [][]string{nil, {"a"}, {"eager.raw", strings.Repeat("b", MaxObject)}} {
		o := &Opened{Image: 1}
		for _, name := range names {
			o.Objects = append(o.Objects, Object{name, 1})
		}
		if got, want := OpenedBytes(slices.Values(names)), len(o.Append(nil, 1))-HeaderSize; got != want {
			t.Errorf("%q: %d bytes, and it has %d", names, got, want)
		}
	}
}
