// Package proxytest has proxies that do to a connection what networks do: they
// delay, cut, truncate and turn bits over. Tests of both ends of a page server
// put one between.
package proxytest

import (
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// A Fault is something that networks do, for Toxic.
type Fault struct{ Name, Toxic string }

// Faults are all that are tried.
var Faults = []Fault{
	{"delays", `{"type": "latency", "attributes": {"latency": 8, "jitter": 6}}`},
	{"narrow", `{"type": "bandwidth", "attributes": {"rate": 4000}}`},
	{"slices", `{"type": "slicer", "attributes": {"average_size": 900, "size_variation": 700, "delay": 5}}`},
	{"resets", `{"type": "reset_peer", "toxicity": 0.5, "attributes": {"timeout": 5}}`},
	{"truncates", `{"type": "limit_data", "attributes": {"bytes": 300000}}`},
	{"falls silent", `{"type": "timeout", "toxicity": 0.5, "attributes": {"timeout": 0}}`},
	{"slow close", `{"type": "slow_close", "attributes": {"delay": 100}}`},
}

// Toxic puts a toxiproxy with one fault, which may be "", before upstream, on
// the way to the client. It returns the address to connect to.
func Toxic(t testing.TB, upstream, fault string) string {
	t.Helper()
	api := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	p := toxiproxy.NewProxy(api, t.Name(), "127.0.0.1:0", upstream)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	if fault != "" {
		if _, err := p.Toxics.AddToxicJson(strings.NewReader(fault)); err != nil {
			t.Fatal(err)
		}
	}
	return p.Listen
}

// A Corrupter passes on what upstream says, with bits turned over here and
// there.
type Corrupter struct {
	net.Listener
	upstream string
	every    int          // bytes, about, from one damaged bit to the next
	turned   atomic.Int64 // bits
	wg       sync.WaitGroup
}

// Corrupt puts a Corrupter before upstream, that turns one bit over in about so
// many bytes.
func Corrupt(t testing.TB, upstream string, every int) *Corrupter {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Corrupter{Listener: ln, upstream: upstream, every: every}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = ln.Close()
		p.wg.Wait()
	})
	return p
}

// Turned is how many bits were turned over.
func (p *Corrupter) Turned() int64 { return p.turned.Load() }

func (p *Corrupter) accept() {
	for n := uint64(0); ; n++ {
		down, err := p.Accept()
		if err != nil {
			return
		}
		up, err := net.Dial("tcp", p.upstream)
		if err != nil {
			_ = down.Close()
			continue
		}
		p.wg.Go(func() {
			_, _ = io.Copy(up, down)
			_ = up.Close()
		})
		p.wg.Go(func() {
			p.pass(down, up, rand.New(rand.NewPCG(n, 5)))
			_ = down.Close()
			_ = up.Close()
		})
	}
}

func (p *Corrupter) pass(to io.Writer, from io.Reader, r *rand.Rand) {
	b := make([]byte, 32<<10)
	next := r.IntN(2 * p.every)
	for {
		n, err := from.Read(b)
		for ; next < n; next += 1 + r.IntN(2*p.every) {
			b[next] ^= 1 << r.IntN(8)
			p.turned.Add(1)
		}
		next -= n
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}
