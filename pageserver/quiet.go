package pageserver

import (
	"container/list"
	"math/rand/v2"
	"net"
	"net/netip"
)

// A quiet is the connections that have not said HELLO, by their origin: of each the oldest
// first, and of none an empty list.
type quiet map[string]*list.List

// add notes a connection.
func (q quiet) add(c *conn) {
	from := origin(c.nc)
	if q[from] == nil {
		q[from] = list.New()
	}
	c.quiet = q[from].PushBack(c)
}

// remove forgets a connection; it reports whether it was noted.
func (q quiet) remove(c *conn) bool {
	if c.quiet == nil {
		return false
	}
	from := origin(c.nc)
	if q[from].Remove(c.quiet); q[from].Len() == 0 {
		delete(q, from)
	}
	c.quiet = nil
	return true
}

// oldest is the oldest connection of the origin that has the most of them, when another one
// of newcomer comes: the peer that opens many is the one that loses some. Among origins
// that have as many it is anyone's turn, or whoever opens one after the other would outlive
// the others for sure. It is nil where there are none.
func (q quiet) oldest(newcomer string) *conn {
	var most *list.List
	count, ties := 0, 0
	for from, l := range q {
		n := l.Len()
		if from == newcomer {
			n++
		}
		if n > count {
			count, ties = n, 0
		}
		if n < count {
			continue
		}
		if ties++; rand.IntN(ties) == 0 {
			most = l
		}
	}
	if most == nil {
		return nil
	}
	return most.Front().Value.(*conn)
}

// origin is where a connection comes from, as far as its peer cannot choose it: the host,
// or the network of 64 bits that a host with IPv6 has to itself.
func origin(nc net.Conn) string {
	host := hostOf(nc)
	if addr, err := netip.ParseAddr(host); err == nil && addr.Is6() && !addr.Is4In6() {
		if network, err := addr.Prefix(64); err == nil {
			return network.String()
		}
	}
	return host
}

// hostOf is the address of the peer without its port: what a client cannot choose.
func hostOf(nc net.Conn) string {
	addr := nc.RemoteAddr()
	if host, _, err := net.SplitHostPort(addr.String()); err == nil {
		return host
	}
	return addr.Network()
}
