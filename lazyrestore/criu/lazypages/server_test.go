package lazypages

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pagexfer"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// A server that accepts and says nothing, or says things that nobody has asked
// for without end, holds up nobody for longer than a reply may take: the
// connection is given up, and the next one asked.
func TestServerThatDoesNotAnswer(t *testing.T) {
	for name, misbehave := range map[string]func(net.Conn){
		"silence":     func(net.Conn) {},
		"it hangs up": func(c net.Conn) { _ = c.Close() },
		"half a reply": func(c net.Conn) {
			_, _ = c.Write(make([]byte, 3))
			_ = c.Close()
		},
		"a flood of replies to nobody": func(c net.Conn) {
			b, err := pagexfer.V41.Append(nil, pagexfer.Header{Command: pagexfer.AddF, Flags: pagexfer.Present, Pages: 1, Addr: 0x7000, ID: 9})
			if err != nil {
				t.Error(err)
			}
			b = append(b, make([]byte, page.Size)...)
			for err == nil {
				_, err = c.Write(b)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dials := 0
			s := &Server{Patience: 50 * time.Millisecond, Dial: func(context.Context) (net.Conn, error) {
				ours, theirs := net.Pipe()
				t.Cleanup(func() { theirs.Close() })
				if dials++; dials == 1 {
					go discard(theirs)
					go misbehave(theirs)
				} else {
					go answer(t, theirs)
				}
				return ours, nil
			}}
			b := make([]byte, page.Size)
			err := s.read(t.Context(), []ask{{7, 0x1000, b}}, image.Demand)
			if err == nil || name == "silence" && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("read: %v, want that the connection is lost", err)
			}
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("read: %v, which means that the pages end, and are damaged", err)
			}
			s.Patience = 0 // as ever
			if err := s.read(t.Context(), []ask{{7, 0x1000, b}}, image.Demand); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b, bytes.Repeat([]byte{42}, page.Size)) {
				t.Error("the page is not what the second server gave")
			}
			s.drop(s.link)
		})
	}
}

// discard reads requests, and does nothing about them.
func discard(c net.Conn) {
	b := make([]byte, 4096)
	for {
		if _, err := c.Read(b); err != nil {
			return
		}
	}
}

// answer answers one request for a page.
func answer(t *testing.T, c net.Conn) {
	h, err := pagexfer.NewDecoder(c).Next()
	if err != nil {
		t.Error(err)
		return
	}
	h.Command, h.Flags = pagexfer.AddF, pagexfer.Present
	b, err := pagexfer.V41.Append(nil, h)
	if err == nil {
		_, err = c.Write(append(b, bytes.Repeat([]byte{42}, page.Size)...))
	}
	if err != nil {
		t.Error(err)
	}
}
