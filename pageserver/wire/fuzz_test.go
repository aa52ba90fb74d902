package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
)

// mend makes the checksums of a stream right, which would keep the fuzzer out.
func mend(side Side, b []byte) []byte {
	b = bytes.Clone(b)
	for rest := b; len(rest) >= HeaderSize; {
		n := int(binary.LittleEndian.Uint32(rest))
		if n > len(rest)-HeaderSize {
			break
		}
		covered := n
		if side == Client && Type(rest[4]) == TypeData {
			covered = min(n, DataSize)
		}
		binary.LittleEndian.PutUint32(rest[12:], checksum(rest[:12], rest[HeaderSize:HeaderSize+covered]))
		rest = rest[HeaderSize+n:]
	}
	return b
}

// Whatever a peer sends: no panic, bounded memory, errors of the known kinds;
// and what parses is appended as the same bytes.
func FuzzDecoder(f *testing.F) {
	for _, s := range samples() {
		f.Add(s.side == Client, s.bytes)
	}
	var requests, replies []byte
	for _, s := range samples() {
		if s.side == Server {
			requests = append(requests, s.bytes...)
		} else {
			replies = append(replies, s.bytes...)
		}
	}
	f.Add(false, requests)
	f.Add(true, replies)
	f.Fuzz(func(t *testing.T, client bool, b []byte) {
		side := Server
		if client {
			side = Client
		}
		b = mend(side, b)
		d, at := NewDecoder(bytes.NewReader(b), side, 64), 0
		for {
			m, err := d.Next()
			if err != nil {
				if !errors.Is(err, ErrMalformed) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("error of another kind: %v", err)
				}
				return
			}
			if len(m.Body) > MaxReply || m.Data.Length > MaxData {
				t.Fatalf("a body of %d bytes, a payload of %d", len(m.Body), m.Data.Length)
			}
			body := b[at+HeaderSize : min(at+HeaderSize+int(m.Length), len(b))]
			at += HeaderSize + int(m.Length)
			v, err := parse(side, m)
			if err != nil {
				if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrVersion) {
					t.Fatalf("error of another kind: %v", err)
				}
				continue
			}
			got := again(m, v)
			if got == nil {
				continue // a type that parse does not know
			}
			got = got[HeaderSize:]
			whole := m.Type != TypeClose && m.Type != TypeGoaway && m.Type != TypeData // these have more that is not kept
			if !bytes.HasPrefix(body, got) || whole && len(body) != len(got) {
				t.Fatalf("%v parses to %+v, which is\n%x, not\n%x", m.Type, v, got, body)
			}
		}
	})
}
