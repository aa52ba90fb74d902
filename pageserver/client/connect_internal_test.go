package client

import (
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

// A connection that was made by an earlier round, and is lost before its result is taken, leaves
// nobody waiting: another one is looked for.
func TestConnectionLostBeforeItIsTaken(t *testing.T) {
	c := &Client{servers: newServers([]Server{{}})}
	l := newLane(c, image.Demand)
	s := c.servers.list[0]
	l.trying = []*server{s}
	l.results <- result{s, nil}
	l.waiting = []*request{{}}
	if err := l.round(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(l.need) == 0 {
		t.Error("a request waits, and nobody looks for a server")
	}
}
