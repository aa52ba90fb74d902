package pageserver

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// The session of version 1 is frozen: what was a right answer then is one for
// ever.
const sessionFile = "wire/testdata/v1/session.txt"

var record = flag.Bool("record", false, "write "+sessionFile+", if there is none")

// A turn is what a client says, and what it is answered.
type turn struct {
	about     string
	say, hear []byte
}

// script is what the client of the session says.
func script() []turn {
	agent := wire.Fields(nil).Append(wire.TagAgent, []byte("a client of version 1"))
	read := func(flags uint8, id uint32, object string, off int64, n uint32) []byte {
		return wire.Read{Image: 1, Length: n, Offset: off, Object: object}.Append(nil, id, flags)
	}
	return []turn{
		{about: "HELLO", say: wire.ClientHello{Version: 1, Client: [16]byte{'c', 'l', 'i', 'e', 'n', 't'}, Fields: agent}.Append(nil)},
		{about: "LIST", say: wire.List{}.Append(nil, 1)},
		{about: "OPEN", say: wire.Open{Image: 1, Name: "image"}.Append(nil, 2)},
		{about: "READ, demand", say: read(0, 3, "pages.lz4", 0, 16)},
		{about: "READ, background", say: read(wire.FlagBackground, 4, "pages.lz4", 4, 8)},
		{about: "READ, short", say: read(wire.FlagShort, 5, "process.bin", 0, wire.MinRead)},
		{about: "READ, short and empty", say: read(wire.FlagShort, 6, "eager.raw", 0, wire.MinRead)},
		{about: "READ from the end", say: read(wire.FlagShort|wire.FlagFromEnd, 7, "pages.idx", 5, wire.MinRead)},
		{about: "READ behind the end", say: read(0, 8, "pages.lz4", 1000, 1)},
		{about: "READ of no object", say: read(0, 9, "pages.zst", 0, 1)},
		{about: "READ that is too long", say: read(0, 10, "pages.lz4", 0, 1<<31)},
		{about: "PING", say: wire.AppendPing(nil, 11)},
		{about: "CLOSE", say: wire.AppendClose(nil, 12, 1)},
		{about: "READ of a closed image", say: read(0, 13, "pages.lz4", 0, 1)},
		{about: "OPEN of no image", say: wire.Open{Image: 1, Name: "other"}.Append(nil, 14)},
		{about: "OPEN of a name that is none", say: wire.Open{Image: 1, Name: "../image"}.Append(nil, 15)},
	}
}

// frozenServer serves the image of the session.
func frozenServer(t *testing.T) net.Addr {
	t.Helper()
	catalog, err := NewCatalog("wire/testdata/v1/image")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{Server: NewServer(catalog, ServerOptions{
		Agent: "a server of version 1", IdleTime: 2 * time.Minute,
		Limits: wire.Limits{Read: 16 << 20, Requests: 256, Images: 64},
	})}
	s.id = [16]byte{'s', 'e', 'r', 'v', 'e', 'r'}
	return s.listenTCP(t)
}

// hear reads the bytes of one message.
func hear(t *testing.T, r io.Reader) []byte {
	t.Helper()
	b := make([]byte, wire.HeaderSize, 4096)
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatal(err)
	}
	n := int(b[0]) | int(b[1])<<8 | int(b[2])<<16
	b = append(b, make([]byte, n)...)
	if _, err := io.ReadFull(r, b[wire.HeaderSize:]); err != nil {
		t.Fatal(err)
	}
	return b
}

// play says what the client says; answers are put into the turns.
func play(t *testing.T, addr net.Addr, turns []turn) {
	t.Helper()
	p := dial(t, addr)
	for i := range turns {
		p.write(turns[i].say)
		turns[i].hear = hear(t, p.nc)
	}
}

// session reads the frozen session.
func session(t *testing.T) []turn {
	t.Helper()
	f, err := os.Open(sessionFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var turns []turn
	for lines := bufio.NewScanner(f); lines.Scan(); {
		switch kind, text, _ := strings.Cut(lines.Text(), " "); kind {
		case "#":
			turns = append(turns, turn{about: text})
		case ">", "<":
			b, err := hex.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			if last := &turns[len(turns)-1]; kind == ">" {
				last.say = b
			} else {
				last.hear = b
			}
		}
	}
	return turns
}

// A client of version 1 is answered today as it was then, to the byte.
func TestSessionOfVersion1(t *testing.T) {
	addr := frozenServer(t)
	if *record {
		recordSession(t, addr)
	}
	frozen := session(t)
	played := make([]turn, len(frozen))
	for i, f := range frozen {
		played[i].say = f.say
	}
	play(t, addr, played)
	for i, f := range frozen {
		sameAnswer(t, f, played[i].hear)
	}
	if now := script(); len(now) != len(frozen) {
		t.Errorf("%d turns are frozen, %d in the script", len(frozen), len(now))
	} else {
		for i := range now {
			if string(now[i].say) != string(frozen[i].say) {
				t.Errorf("%s: a client says\n%x, not\n%x", now[i].about, now[i].say, frozen[i].say)
			}
		}
	}
}

// sameAnswer holds an answer to the frozen one. The text of an error is for
// people, and may change.
func sameAnswer(t *testing.T, f turn, got []byte) {
	t.Helper()
	want := f.hear
	if wire.Type(want[4]) == wire.TypeError {
		const kept = wire.HeaderSize + 2 // up to the code
		want, got = slices.Concat(want[4:12], want[wire.HeaderSize:kept]), slices.Concat(got[4:12], got[wire.HeaderSize:kept])
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: answered\n%x, not\n%x", f.about, got, want)
	}
}

// recordSession writes the session, once.
func recordSession(t *testing.T, addr net.Addr) {
	t.Helper()
	if _, err := os.Stat(sessionFile); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%s is frozen", sessionFile)
	}
	turns := script()
	play(t, addr, turns)
	var b strings.Builder
	for _, turn := range turns {
		fmt.Fprintf(&b, "# %s\n> %x\n< %x\n", turn.about, turn.say, turn.hear)
	}
	if err := os.WriteFile(sessionFile, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A client that is newer than the server: it offers a capability, adds fields
// to its requests, and learns that nothing of it is known. All the rest is
// answered as to a client of version 1.
func TestNewerClient(t *testing.T) {
	const capability = wire.FirstCapability + 0x0ff
	more := wire.Fields(nil).Append(capability, []byte("an option of that capability")).Append(0x7f, nil)
	p := dial(t, frozenServer(t))
	p.write(wire.ClientHello{Version: 1, Client: [16]byte{'c', 'l', 'i', 'e', 'n', 't'}, Fields: more}.Append(nil))
	b := hear(t, p.nc)
	h, err := wire.ParseServerHello(b[wire.HeaderSize:])
	if err != nil {
		t.Fatal(err)
	}
	if _, granted := h.Fields.Get(capability); granted {
		t.Error("the server grants what it does not know")
	}
	for _, f := range session(t) {
		var say []byte
		switch f.about {
		case "HELLO":
			sameAnswer(t, f, b)
			continue
		case "OPEN":
			say = wire.Open{Image: 1, Name: "image", Fields: more}.Append(nil, 2)
		case "READ, demand":
			say = wire.Read{Image: 1, Length: 16, Object: "pages.lz4", Fields: more}.Append(nil, 3, 0x80) // and a flag
		case "LIST":
			say = wire.List{Fields: more}.Append(nil, 1)
		default:
			say = f.say
		}
		p.write(say)
		sameAnswer(t, f, hear(t, p.nc))
	}
	// A request that version 1 has not.
	p.write(withType(wire.List{After: "anything", Fields: more}.Append(nil, 99), 0x60))
	m := p.next()
	wants(t, "a request of another type", p.failed(m), wire.CodeUnsupported)
	if m.ID != 99 {
		t.Errorf("answered as %d, not 99", m.ID)
	}
	p.write(wire.AppendPing(nil, 100))
	if m := p.next(); m.Type != wire.TypeDone || m.ID != 100 {
		t.Errorf("after it: %+v", m)
	}
}

// A server that is newer than the client may add fields to its answers, in the
// tags that version 1 does not know: the client reads the rest.
func TestNewerServer(t *testing.T) {
	more := wire.Fields(nil).Append(wire.FirstCapability, []byte("something new"))
	for _, f := range session(t) {
		old := f.hear
		if wire.Type(old[4]) == wire.TypeData {
			continue // its payload is the rest
		}
		d := wire.NewDecoder(strings.NewReader(string(withMore(old, more))), wire.Client, 64)
		m, err := d.Next()
		if err != nil {
			t.Fatalf("%s: %v", f.about, err)
		}
		body := old[wire.HeaderSize:]
		then, now := parsed(t, m.Type, body), parsed(t, m.Type, m.Body)
		if then != now {
			t.Errorf("%s: read as\n%s, not\n%s", f.about, now, then)
		}
	}
}

// parsed is a reply as a client understands it, but for fields it does not know.
func parsed(t *testing.T, typ wire.Type, body []byte) string {
	t.Helper()
	var v any
	var err error
	switch typ {
	case wire.TypeHello:
		var h wire.ServerHello
		h, err = wire.ParseServerHello(body)
		h.Fields = nil
		v = h
	case wire.TypeError:
		var e *wire.Error
		if e, err = wire.ParseError(body); err == nil {
			v = fmt.Sprint(e.Code, e.Text)
		}
	case wire.TypeOpened:
		var o *wire.Opened
		if o, err = wire.ParseOpened(body); err == nil {
			v = fmt.Sprint(o.Image, o.Digest, o.Objects)
		}
	case wire.TypeListed:
		var l *wire.Listed
		if l, err = wire.ParseListed(body); err == nil {
			v = fmt.Sprint(l.Images)
		}
	default:
	}
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(typ, v)
}

// withType is a message made another one; withMore has fields at its end.
func withType(b []byte, typ wire.Type) []byte {
	b[4] = byte(typ)
	return wire.Seal(b)
}

func withMore(b []byte, more wire.Fields) []byte {
	return wire.Seal(append(append([]byte{}, b...), more...))
}
