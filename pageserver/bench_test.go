package pageserver

import (
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// BenchmarkDemand is a demand read of so many bytes on loopback, over and over,
// beside a bare request and reply of the same bytes.
func BenchmarkDemand(b *testing.B) {
	for _, n := range []int{4 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10} {
		b.Run(fmt.Sprintf("server/%dKiB", n>>10), func(b *testing.B) {
			s := newSite(b, ServerOptions{})
			p := dial(b, s.listenTCP(b))
			p.greet(1)
			p.mustOpen()
			buf := make([]byte, n)
			b.SetBytes(int64(n))
			var req []byte
			for i := range b.N {
				req = wire.Read{Image: 1, Length: uint32(n), Offset: int64(i%16) * 256 << 10, Object: "pages.lz4"}.Append(req[:0], 1, 0)
				p.write(req)
				for {
					m := p.next()
					if err := p.d.ReadPayload(buf[:m.Data.Length]); err != nil {
						b.Fatal(err)
					}
					if m.Flags&wire.FlagLast != 0 {
						break
					}
				}
			}
		})
		b.Run(fmt.Sprintf("bare/%dKiB", n>>10), func(b *testing.B) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer ln.Close()
			go func() {
				nc, err := ln.Accept()
				if err != nil {
					return
				}
				defer nc.Close()
				req, reply := make([]byte, 42), make([]byte, n)
				for {
					if _, err := io.ReadFull(nc, req); err != nil {
						return
					}
					if _, err := nc.Write(reply); err != nil {
						return
					}
				}
			}()
			nc, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			defer nc.Close()
			req, reply := make([]byte, 42), make([]byte, n)
			b.SetBytes(int64(n))
			for range b.N {
				if _, err := nc.Write(req); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(nc, reply); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
