package pagexfer

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A transcript is a conversation as it went over the wire, one thing that was
// said to a line; > is the client, < the server:
//
//	> HEX   MEANING       a header
//	> pages N             N pages, whose bytes are left out
//	< byte N, < int32 N   a reply that is no header
//
// The client's lines go through a Decoder, the server's through a Client,
// which has to say the same bytes.
func TestTranscripts(t *testing.T) {
	names, err := filepath.Glob("testdata/*.transcript")
	if err != nil || len(names) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".transcript"), func(t *testing.T) {
			checkTranscript(t, readTranscript(t, name), strings.Contains(name, "-4.2"))
		})
	}
}

// A said is a line of a transcript.
type said struct {
	line    string
	client  bool
	raw     []byte
	header  bool
	meaning string
}

func readTranscript(t *testing.T, name string) []said {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []said
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.HasPrefix(s.Text(), "#") || s.Text() == "" {
			continue
		}
		words := strings.Fields(s.Text())
		one := said{line: s.Text(), client: words[0] == ">"}
		switch n, _ := strconv.Atoi(words[2]); words[1] {
		case "pages":
			one.raw = make([]byte, n<<page.Shift)
		case "byte":
			one.raw = []byte{byte(n)}
		case "int32":
			one.raw = binary.LittleEndian.AppendUint32(nil, uint32(n))
		default:
			one.header, one.meaning = true, strings.Join(words[2:], " ")
			if one.raw, err = hex.DecodeString(words[1]); err != nil {
				t.Fatalf("%s: %v", s.Text(), err)
			}
		}
		all = append(all, one)
	}
	return all
}

func checkTranscript(t *testing.T, all []said, wide bool) {
	var fromClient, fromServer bytes.Buffer
	want := V41
	if wide {
		want = V42
	}
	for _, s := range all {
		if s.client {
			fromClient.Write(s.raw)
		} else {
			fromServer.Write(s.raw)
		}
	}
	var sent bytes.Buffer
	dec := NewDecoder(&fromClient)
	client := NewClient(struct {
		io.Reader
		io.Writer
	}{&fromServer, &sent}, want)
	room := make([]byte, MaxRequest<<page.Shift)
	for _, s := range all {
		switch {
		case !s.header && s.client:
			if _, err := io.ReadFull(&fromClient, make([]byte, len(s.raw))); err != nil {
				t.Fatalf("%s: %v", s.line, err)
			}
		case s.header && s.client:
			h, err := dec.Next()
			if err != nil {
				t.Fatalf("%s: %v", s.line, err)
			}
			if h.String() != s.meaning || dec.Dialect() != want {
				t.Errorf("%s: read as %s of %s", s.line, h, dec.Dialect())
			}
			if got := header(t, want, h); !bytes.Equal(got, s.raw) {
				t.Errorf("%s: written as %x", s.line, got)
			}
			if h.Command == Get {
				if err := client.Request(Request{uint32(h.ID), h.Addr, int(h.Pages)}); err != nil {
					t.Fatalf("%s: %v", s.line, err)
				}
				if !bytes.HasSuffix(sent.Bytes(), s.raw) {
					t.Errorf("%s: our client says it otherwise", s.line)
				}
			}
		case s.header:
			r, n, err := client.Receive(room)
			if err != nil {
				t.Fatalf("%s: %v", s.line, err)
			}
			if got := (Header{AddF, Present, uint64(n), r.Addr, uint64(r.PID)}).String(); got != s.meaning {
				t.Errorf("%s: read as %s", s.line, got)
			}
		}
	}
	if fromClient.Len() > 0 {
		t.Errorf("%d bytes of the client were not read", fromClient.Len())
	}
}
