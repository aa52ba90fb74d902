package harness

import (
	"fmt"
	"net"
	"sync"
	"time"
)

// A link is a network that is slower than loopback, made by a proxy: all
// connections together get so many bytes a second in each direction, and
// every byte arrives so much later.
type link struct {
	name        string
	bytesSecond float64
	delay       time.Duration // one way
}

// A lane is one direction of a link.
type lane struct {
	*link
	mu   sync.Mutex
	free time.Time // guarded by mu: when the bytes sent so far have left
}

// A packet is bytes on their way.
type packet struct {
	bytes   []byte
	arrives time.Time
}

// listen opens a port that leads to address over the link, until the listener
// is closed.
func (l *link) listen(address string) (net.Listener, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("a link of %s: %w", l.name, err)
	}
	there, back := &lane{link: l}, &lane{link: l}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", address)
			if err != nil {
				client.Close()
				continue
			}
			go there.carry(server, client)
			go back.carry(client, server)
		}
	}()
	return listener, nil
}

// carry takes bytes from one end to the other, and closes both in the end.
func (l *lane) carry(to, from net.Conn) {
	const window = 64 // packets on their way
	road := make(chan packet, window)
	go func() {
		defer close(road)
		for {
			bytes := make([]byte, 16<<10)
			n, err := from.Read(bytes)
			if n > 0 {
				road <- packet{bytes[:n], l.send(n)}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range road {
		time.Sleep(time.Until(p.arrives))
		if _, err := to.Write(p.bytes); err != nil {
			from.Close() // ends the reader
		}
	}
	to.Close()
	from.Close()
}

// send gives the moment at which n bytes that are sent now arrive.
func (l *lane) send(n int) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(float64(n) / l.bytesSecond * 1e9))
	return l.free.Add(l.delay)
}
