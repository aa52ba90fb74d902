package pageserver

import (
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// A Lane says how urgent a read is.
type Lane uint8

// The lanes.
const (
	LaneDemand     Lane = iota // somebody waits for it
	LaneBackground             // nobody waits for it yet
	Lanes                      // how many there are
)

// String is the lane's name.
func (l Lane) String() string {
	if l == LaneDemand {
		return "demand"
	}
	return "background"
}

// Codes is how many error codes are counted one by one.
const Codes = 32

// counters are what a Server counts. They only grow.
type counters struct {
	accepted, refused, gaveWay atomic.Uint64
	silent, malformed, broken  atomic.Uint64

	bytes   [Lanes]atomic.Uint64
	latency [Lanes]histogram
	errors  [Codes]atomic.Uint64
}

func (c *counters) count(lane Lane, bytes int) { c.bytes[lane].Add(uint64(bytes)) }

func (c *counters) observe(lane Lane, d time.Duration) { c.latency[lane].observe(d) }

func (c *counters) countError(code wire.Code) { c.errors[code%Codes].Add(1) }

// Buckets is how many buckets a histogram has, but for the last one, which has
// no bound.
const Buckets = 24

// BucketBound is up to where a bucket of a Histogram reaches.
func BucketBound(i int) time.Duration { return time.Microsecond << i }

// A histogram counts durations by powers of two of microseconds.
type histogram struct {
	counts [Buckets + 1]atomic.Uint64
	sum    atomic.Uint64 // nanoseconds
}

func (h *histogram) observe(d time.Duration) {
	d = max(d, 0)
	// The first bucket whose bound is not less than d.
	i := bits.Len64(uint64(max(d-1, 0) / time.Microsecond))
	h.counts[min(i, Buckets)].Add(1)
	h.sum.Add(uint64(d))
}

// A Histogram counts durations.
type Histogram struct {
	Counts [Buckets + 1]uint64 // Counts[i] are longer than BucketBound(i-1) and not longer than BucketBound(i)
	Sum    time.Duration
}

func (h *histogram) snapshot() Histogram {
	s := Histogram{Sum: time.Duration(h.sum.Load())}
	for i := range h.counts {
		s.Counts[i] = h.counts[i].Load()
	}
	return s
}

// ServerStats are what a Server does and has done.
type ServerStats struct {
	Clients, Connections int // at the moment
	Held                 int // images that somebody has open, at the moment

	Accepted, Refused uint64 // connections; Refused are those that were too many
	GaveWay           uint64 // connections closed, where there were too many, before they had said anything
	Silent            uint64 // connections closed because nothing came, or was taken, for too long
	Malformed         uint64 // connections closed because the client did not keep to the protocol
	Broken            uint64 // connections that ended otherwise than in peace

	Bytes   [Lanes]uint64    // of objects
	Latency [Lanes]Histogram // of reads, from the request read to the reply written
	Errors  [Codes]uint64    // replies, by wire.Code
}

// Stats are what the server does and has done.
func (s *Server) Stats() ServerStats {
	st := ServerStats{
		Accepted: s.accepted.Load(), Refused: s.refused.Load(), GaveWay: s.gaveWay.Load(),
		Silent: s.silent.Load(), Malformed: s.malformed.Load(), Broken: s.broken.Load(),
		Held: s.catalog.inUse(),
	}
	s.mu.Lock()
	st.Clients, st.Connections = len(s.clients), len(s.open)
	s.mu.Unlock()
	for lane := range Lanes {
		st.Bytes[lane] = s.bytes[lane].Load()
		st.Latency[lane] = s.latency[lane].snapshot()
	}
	for i := range st.Errors {
		st.Errors[i] = s.errors[i].Load()
	}
	return st
}
