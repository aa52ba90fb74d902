package client_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store/storetest"
	"github.com/lazyrestore/lazyrestore/pageserver/client"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// A server that gives a byte now and then is left for another one.
func TestServerThatDrips(t *testing.T) {
	noLeaks(t)
	root := t.TempDir()
	want := content(6, 300_000)
	put(t, root, "img", storetest.Objects{"pages.lz4": want})
	good := serve(t, root)
	sum, err := hex.DecodeString(strings.TrimPrefix(digestOf(t, root), "sha256:"))
	if err != nil {
		t.Fatal(err)
	}
	reply := wire.Opened{Image: 1, Digest: [32]byte(sum), Objects: []wire.Object{{Name: "pages.lz4", Size: 300_000}}}
	bad := impostor(t, func(conn net.Conn) {
		_, _ = conn.Write(serverHello(0))
		dec := wire.NewDecoder(conn, wire.Server, 4096)
		for {
			m, err := dec.Next()
			if err != nil {
				return
			}
			if m.Type == wire.TypeOpen {
				_, _ = conn.Write(reply.Append(nil, m.ID))
			}
			if m.Type == wire.TypeRead {
				_, _ = conn.Write(wire.AppendData(nil, m.ID, wire.FlagLast, wire.Data{Size: 300_000, Length: 1000}))
				break
			}
		}
		for i := range 1000 {
			if _, err := conn.Write(want[i : i+1]); err != nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	for _, lane := range []image.Lane{image.Demand, image.Background} {
		t.Run(lane.String(), func(t *testing.T) {
			t.Parallel()
			c := open(t, address("img", bad, good.addr), client.Options{Timeout: 2 * time.Second, Logger: testLog(t)})
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			p := make([]byte, 1000)
			if err := c.ReadRange(ctx, "pages.lz4", p, 0, lane); err != nil || !bytes.Equal(p, want[:1000]) {
				t.Errorf("%v, or other bytes", err)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
