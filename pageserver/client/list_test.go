package client_test

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/pageserver/client"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// A list that has no end, or no order, is not believed.
func TestListWithoutEnd(t *testing.T) {
	for name, each := range map[string]func(i int) string{
		"the same again": func(i int) string { return fmt.Sprintf("%09d", i%500) },
		"ever more":      func(i int) string { return fmt.Sprintf("%09d", i) },
	} {
		t.Run(name, func(t *testing.T) {
			const part = 1000
			liar := impostor(t, func(conn net.Conn) {
				_, err := conn.Write(serverHello(0))
				for i := 0; err == nil; i += part {
					var l wire.Listed
					for j := range part {
						l.Images = append(l.Images, wire.Image{Name: each(i + j)})
					}
					_, err = conn.Write(l.Append(nil, 1, 0))
				}
			})
			if list, err := client.List(t.Context(), at(liar), client.Options{Timeout: time.Minute}); err == nil || errors.Is(err, client.ErrSilent) {
				t.Errorf("%d images, %v", len(list), err)
			}
		})
	}
}
