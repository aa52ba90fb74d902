package main

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/pageserver"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// A collector makes Prometheus' metrics of a server's own statistics.
type collector struct {
	server *pageserver.Server

	clients, connections, images *prometheus.Desc
	accepted, refused, gaveWay   *prometheus.Desc
	closed                       *prometheus.Desc
	bytes, latency, errors       *prometheus.Desc
	build                        *prometheus.Desc
}

func newCollector(server *pageserver.Server) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("lazyrestore_server_"+name, help, labels, nil)
	}
	return &collector{
		server:      server,
		clients:     desc("clients", "Clients that are connected; each may have several connections."),
		connections: desc("connections", "Connections that are open."),
		images:      desc("images_open", "Images that a client has open."),
		accepted:    desc("connections_accepted_total", "Connections that were accepted."),
		refused:     desc("connections_refused_total", "Connections that were one too many."),
		gaveWay:     desc("connections_gave_way_total", "Connections that had said nothing yet, and were closed for a new one."),
		closed:      desc("connections_closed_total", "Connections that did not end in peace: the client was silent or took nothing for too long, did not keep to the protocol, or the network broke.", "reason"),
		bytes:       desc("read_bytes_total", "Bytes of objects sent.", "lane"),
		latency:     desc("read_duration_seconds", "Time from a read's arrival to the last byte of its answer being handed to the kernel.", "lane"),
		errors:      desc("errors_total", "Errors sent to clients.", "code"),
		build:       desc("build_info", "The version of the server; its value is 1.", "version"),
	}
}

// Describe is prometheus.Collector's.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.clients, c.connections, c.images, c.accepted, c.refused, c.gaveWay, c.closed, c.bytes, c.latency, c.errors, c.build} {
		to <- d
	}
}

// Collect is prometheus.Collector's.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	st := c.server.Stats()
	gauge := func(d *prometheus.Desc, n int) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n))
	}
	count := func(d *prometheus.Desc, n uint64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge(c.clients, st.Clients)
	gauge(c.connections, st.Connections)
	gauge(c.images, st.Held)
	count(c.accepted, st.Accepted)
	count(c.refused, st.Refused)
	count(c.gaveWay, st.GaveWay)
	count(c.closed, st.Silent, "silent")
	count(c.closed, st.Malformed, "malformed")
	count(c.closed, st.Broken, "broken")
	for lane := range pageserver.Lanes {
		count(c.bytes, st.Bytes[lane], lane.String())
		to <- histogram(c.latency, &st.Latency[lane], lane.String())
	}
	for code, n := range st.Errors {
		if n > 0 || code > 0 && code <= int(wire.CodeDamaged) {
			count(c.errors, n, wire.Code(code).Word())
		}
	}
	to <- prometheus.MustNewConstMetric(c.build, prometheus.GaugeValue, 1, version())
}

func histogram(d *prometheus.Desc, h *pageserver.Histogram, lane string) prometheus.Metric {
	buckets := make(map[float64]uint64, pageserver.Buckets)
	all := uint64(0)
	for i, n := range h.Counts {
		all += n
		if i < pageserver.Buckets {
			buckets[pageserver.BucketBound(i).Seconds()] = all
		}
	}
	return prometheus.MustNewConstHistogram(d, all, h.Sum.Seconds(), buckets, lane)
}

// checkMetrics looks whether address is one to listen on, or empty.
func checkMetrics(address string) error {
	if address == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		return &cli.UsageError{
			Problem: fmt.Sprintf("--metrics %s: %v", address, err),
			Hint:    "it takes HOST:PORT, as 127.0.0.1:9480; without HOST, as :9480, all that reach this machine see the metrics",
		}
	}
	return nil
}

// An exporter answers Prometheus.
type exporter struct {
	http.Server
	ln net.Listener
}

// startExporter serves /metrics on an address, until Close.
func startExporter(address string, server *pageserver.Server) (*exporter, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(newCollector(server), collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	e := &exporter{ln: ln, Server: http.Server{
		Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 8 << 10, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}}
	go func() { _ = e.Serve(netutil.LimitListener(ln, maxScrapers)) }() // ends with Close
	return e, nil
}

// maxScrapers is how many connections there may be to the metrics' port at a time: others
// wait, and none of them costs the page server a descriptor.
const maxScrapers = 16

func (e *exporter) url() string { return "http://" + e.ln.Addr().String() + "/metrics" }
