package pagexfer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

var dialects = []Dialect{V41, V42}

// samples are headers as CRIU sends them, with lengths at the borders.
var samples = []Header{
	{Command: Open2, ID: ImageID(Process, 1)},
	{Command: Open2, ID: ImageID(Shmem, 70000)},
	{Command: Parent, ID: ImageID(Process, maxPID)},
	{Command: Open, ID: ImageID(Process, 77)},
	{Command: AddF, Flags: Present | Lazy, Pages: 1, Addr: 0x7f00_0000_0000, ID: ImageID(Process, 1)},
	{Command: AddF, Flags: Present, Pages: 1 << 20, Addr: 0x1_0000, ID: ImageID(Process, 1)},
	{Command: AddF, Flags: InParent, Pages: math.MaxUint32, Addr: 0x1000, ID: ImageID(Process, 1)},
	{Command: AddF, Flags: Lazy, Pages: 3, Addr: 0, ID: ImageID(Process, 1)},
	{Command: Add, Pages: 2, Addr: 0x2000, ID: ImageID(Process, 1)},
	{Command: Hole, Pages: 2, Addr: 0x4000, ID: ImageID(Process, 1)},
	{Command: Get, Pages: 1, Addr: 0x40_0000, ID: 1},
	{Command: Get, Pages: MaxRequest, Addr: 0x7fff_ffff_f000, ID: 4194304},
	{Command: Close},
	{Command: ForceClose},
}

func TestHeaderRoundTrip(t *testing.T) {
	for _, d := range dialects {
		for _, h := range samples {
			b, err := d.Append(nil, h)
			if err != nil || len(b) != d.HeaderSize() {
				t.Fatalf("%s %s: %d bytes, %v", d, h, len(b), err)
			}
			if got, err := d.Parse(b); err != nil || got != h {
				t.Errorf("%s %s: came back as %s, %v", d, h, got, err)
			}
		}
	}
	wide := Header{Command: AddF, Flags: InParent, Pages: 1 << 32, Addr: 0x1000}
	if _, err := V41.Append(nil, wide); err == nil {
		t.Error("2^32 pages went into a header with 32 bits for them")
	}
	if b, err := V42.Append(nil, wide); err != nil {
		t.Error(err)
	} else if got, err := V42.Parse(b); err != nil || got != wide {
		t.Errorf("%s came back as %s, %v", wide, got, err)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, h := range map[string]Header{
		"command":       {Command: 8},
		"no pages":      {Command: AddF, Flags: Present, Addr: 0x1000},
		"unaligned":     {Command: AddF, Flags: Present, Pages: 1, Addr: 0x1001},
		"kernel memory": {Command: AddF, Flags: Present, Pages: 1, Addr: maxAddr},
		"too many":      {Command: AddF, Flags: Present, Pages: 2, Addr: maxAddr - page.Size},
		"get of none":   {Command: Get, Addr: 0x1000, ID: 1},
		"get of no pid": {Command: Get, Pages: 1, Addr: 0x1000, ID: 1 << 31},
		"wrap":          {Command: AddF, Flags: InParent, Pages: 1 << 52, Addr: 0x1000},
	} {
		b, err := V42.Append(nil, h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := V42.Parse(b); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestImageOfID(t *testing.T) {
	for _, c := range []struct {
		id     uint64
		kind   Kind
		number uint64
		ok     bool
	}{
		{ImageID(Process, 1), Process, 1, true},
		{ImageID(Shmem, 1<<33), Shmem, 1 << 33, true},
		{ImageID(Process, 0), 0, 0, false},
		{ImageID(Process, 1<<31), 0, 0, false},
		{ImageID(3, 1), 0, 0, false},
		{7 << 8, 0, 0, false},
	} {
		kind, number, err := Header{Command: Open2, ID: c.id}.Image()
		if kind != c.kind || number != c.number || (err == nil) != c.ok || err != nil && !errors.Is(err, ErrProtocol) {
			t.Errorf("%#x: kind %d number %d, %v", c.id, kind, number, err)
		}
	}
}

// Every first header of CRIU shows its dialect, whatever the padding holds.
func TestDetect(t *testing.T) {
	for _, d := range dialects {
		for _, h := range samples {
			switch h.Command {
			case Open, Open2, Parent, Get:
			default:
				continue
			}
			for _, padding := range []uint32{0, 1, 0xffffffff, 0x1000} {
				b, err := d.Append(nil, h)
				if err != nil {
					t.Fatal(err)
				}
				if d == V42 {
					binary.LittleEndian.PutUint32(b[4:], padding)
				}
				if got, err := Detect(b[:minHeader]); err != nil || got != d {
					t.Errorf("%s of %s, padding %#x: taken for %s, %v", h, d, padding, got, err)
				}
			}
		}
	}
}

func TestDetectRefuses(t *testing.T) {
	for name, first := range map[string][]byte{
		"tls":   append([]byte{0x16, 3, 1, 2, 0, 1, 0, 1}, make([]byte, 16)...),
		"http":  []byte("GET / HTTP/1.1\r\nHost: x\r\n")[:minHeader],
		"add":   header(t, V41, Header{Command: AddF, Flags: Present, Pages: 1, Addr: 0x1000, ID: 0x101}),
		"zero":  make([]byte, minHeader),
		"open":  append([]byte{4, 0, 0, 0, 0, 0, 0, 0, 1}, make([]byte, 15)...),
		"get 0": append([]byte{7, 0, 0, 0}, make([]byte, 20)...),
	} {
		d, err := Detect(first)
		if !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %s, %v", name, d, err)
		}
		if name == "tls" && !strings.Contains(err.Error(), "TLS") {
			t.Errorf("TLS is not named: %v", err)
		}
	}
}

func TestParseDialect(t *testing.T) {
	for _, d := range dialects {
		if got, err := ParseDialect(d.String()); err != nil || got != d {
			t.Errorf("%s: %s, %v", d, got, err)
		}
	}
	if _, err := ParseDialect("4"); err == nil {
		t.Error("4 is taken for a dialect")
	}
}

func header(t testing.TB, d Dialect, h Header) []byte {
	t.Helper()
	b, err := d.Append(nil, h)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecoderEnds(t *testing.T) {
	for _, d := range dialects {
		whole := header(t, d, samples[0])
		for n := range len(whole) {
			_, err := NewDecoder(bytes.NewReader(whole[:n])).Next()
			if n == 0 && !errors.Is(err, io.EOF) || n > 0 && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s cut at %d: %v", d, n, err)
			}
		}
	}
}

// pages is n pages, each filled with a byte of its own.
func pages(n int) []byte {
	b := make([]byte, 0, n<<page.Shift)
	for i := range n {
		b = append(b, bytes.Repeat([]byte{byte(i + 1)}, page.Size)...)
	}
	return b
}

// answer is a server that gives what have says of each request.
func answer(t *testing.T, conn net.Conn, have func(Header) (Header, []byte)) {
	dec := NewDecoder(conn)
	for {
		h, err := dec.Next()
		if err != nil {
			return
		}
		if h.Command == Close {
			_, _ = conn.Write([]byte{0, 0, 0, 0})
			return
		}
		reply, data := have(h)
		if reply.Command == 0 {
			conn.Close()
			return
		}
		if _, err := conn.Write(append(header(t, dec.Dialect(), reply), data...)); err != nil {
			return
		}
	}
}

func TestClient(t *testing.T) {
	for _, d := range dialects {
		t.Run(d.String(), func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer ours.Close()
			go answer(t, theirs, func(h Header) (Header, []byte) {
				n := min(h.Pages, 3)
				return Header{Command: AddF, Flags: Present, Pages: n, Addr: h.Addr, ID: h.ID}, pages(int(n))
			})
			c := NewClient(ours, d)
			for _, r := range []Request{{7, 0x1000, 1}, {8, 0x40_0000, 64}, {7, 0x7fff_0000_0000, 3}} {
				if err := c.Request(r); err != nil {
					t.Fatal(err)
				}
				p := make([]byte, 64<<page.Shift)
				got, n, err := c.Receive(p)
				if err != nil || got != r || n != min(r.Pages, 3) || !bytes.Equal(p[:n<<page.Shift], pages(n)) {
					t.Fatalf("%+v: %d pages of %+v, %v", r, n, got, err)
				}
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestClientOfUnknownPage(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	go answer(t, theirs, func(Header) (Header, []byte) { return Header{}, nil })
	c := NewClient(ours, V41)
	if err := c.Request(Request{1, 0x1000, 1}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Receive(pages(1)); !errors.Is(err, io.EOF) {
		t.Errorf("a closed connection: %v", err)
	}
}

func TestClientChecksItsCaller(t *testing.T) {
	var sent bytes.Buffer
	c := NewClient(&sent, V41)
	for _, r := range []Request{{1, 0x1000, 0}, {1, 0x1000, MaxRequest + 1}, {1, 0x1001, 1}, {1 << 31, 0x1000, 1}, {1, maxAddr, 1}} {
		if err := c.Request(r); err == nil {
			t.Errorf("%+v was sent", r)
		}
	}
	if sent.Len() > 0 || c.Pending() > 0 {
		t.Errorf("%d bytes sent, %d requests pending", sent.Len(), c.Pending())
	}
	for range maxPending {
		if err := c.Request(Request{1, 0x1000, 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Request(Request{1, 0x1000, 1}); !errors.Is(err, errPending) {
		t.Errorf("request %d: %v", maxPending+1, err)
	}
}

// A server that says anything but what it was asked for is found out, and
// nothing is written beyond the room that was given.
func TestClientOfHostileServer(t *testing.T) {
	good := Header{Command: AddF, Flags: Present, Pages: 2, Addr: 0x1000, ID: 7}
	for name, c := range map[string]struct {
		reply func(h *Header)
		want  error
	}{
		"other address": {func(h *Header) { h.Addr += page.Size }, ErrProtocol},
		"other pid":     {func(h *Header) { h.ID++ }, ErrProtocol},
		"more pages":    {func(h *Header) { h.Pages++ }, ErrProtocol},
		"no pages":      {func(h *Header) { h.Pages = 0 }, ErrProtocol},
		"absent pages":  {func(h *Header) { h.Flags = Lazy }, ErrProtocol},
		"a request":     {func(h *Header) { h.Command = Get }, ErrProtocol},
		"cut":           {func(*Header) {}, io.ErrUnexpectedEOF},
	} {
		for _, d := range dialects {
			h := good
			c.reply(&h)
			in := append(header(t, d, h), pages(1)...)
			client := NewClient(struct {
				io.Reader
				io.Writer
			}{bytes.NewReader(in), io.Discard}, d)
			if err := client.Request(Request{7, 0x1000, 2}); err != nil {
				t.Fatal(err)
			}
			if _, _, err := client.Receive(make([]byte, 2<<page.Shift)); !errors.Is(err, c.want) {
				t.Errorf("%s, %s: %v", d, name, err)
			}
		}
	}
	unasked := NewClient(bytes.NewBuffer(header(t, V41, good)), V41)
	if _, _, err := unasked.Receive(nil); !errors.Is(err, ErrProtocol) {
		t.Errorf("pages that nobody asked for: %v", err)
	}
}

func TestFlagsString(t *testing.T) {
	if got := (Present | Lazy | 8).String(); got != "|LAZY|PRESENT|0x8" {
		t.Error(got)
	}
	if !slices.Contains([]string{"ADD_F|PARENT pages=4 addr=0x1000 id=0x101"}, (Header{AddF, InParent, 4, 0x1000, 0x101}).String()) {
		t.Error("header as text")
	}
}
