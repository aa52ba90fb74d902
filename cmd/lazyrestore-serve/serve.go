package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/pageserver"
	"github.com/lazyrestore/lazyrestore/pageserver/tlsfiles"
	"github.com/lazyrestore/lazyrestore/pageserver/wire"
)

// serveVerb is a run of the verb.
type serveVerb struct {
	*verb.Command
	address  string
	port     int
	tls      tlsfiles.Files
	insecure bool
	statusFD int
	metrics  string
	stopTime time.Duration
	most     bool // --max-connections was given
	opts     pageserver.ServerOptions
	log      *slog.Logger
}

func serve(c *verb.Command) *cli.Command {
	v := &serveVerb{
		Command: c, address: "127.0.0.1", port: wire.DefaultPort, stopTime: 30 * time.Second,
		opts: pageserver.ServerOptions{MaxConns: 4096, IdleTime: 2 * time.Minute, WriteTime: 30 * time.Second},
	}
	return &cli.Command{
		Name: "serve", Args: "DIR...", MinArgs: 1, MaxArgs: -1, Operand: cli.OperandDirectory,
		Short: "serve images over the network",
		Long: `Serves images to lazyrestore restore tcp://HOST:PORT/NAME on other machines, any number of them at once. Each
			DIR is an image, or a directory of images; the NAME of an image is the last element of its path. Images that
			come into a directory later are served too. The server hands out bytes as they are stored: what is right
			about them is checked where they are restored.

			Other machines are let in with TLS and certificates on both sides: --tls-cacert, --tls-cert and --tls-key,
			whose files may be replaced while the server runs. Without them an address beyond this machine is
			refused, unless --insecure says that whoever reaches the port may read the images. An image has all that was in
			the memory of its process.

			Connections, and the files of images that clients have open, share the limit of open files (ulimit -n). Of one of
			1024 that is 750 connections and 219 files, and an image of more files is refused; a higher limit lets it in, or a
			smaller --max-connections. An image whose name has spaces or control characters is not served: no address could name it.

			TERM and INT end the server: clients are told, what is in flight is finished. A second one ends it at
			once. Sockets of systemd are used in place of --address and --port; readiness is told to systemd, too. Beside a
			unix socket there is a file PATH.lock for as long as a server listens there.`,
		Objects: []cli.Object{object()},
		Flags:   append(v.flags(), c.Flags()...),
		Examples: []cli.Example{
			{Line: "lazyrestore serve /var/lib/images", Does: "Serve all images of a directory on port 7480 of this machine alone."},
			{Line: "lazyrestore serve --address 0.0.0.0 --tls-cacert ca.pem --tls-cert node.pem --tls-key node.key ckpt-4711", Does: "Serve one image to machines with a certificate."},
			{Line: "lazyrestore serve --address /run/images.sock images", Does: "Serve on a unix socket."},
		},
		Hints: map[string]string{"-p": "lazyrestore calls it --port", "-t": "images are named as arguments", "-D": "images are named as arguments"},
		Run:   v.run,
	}
}

func (v *serveVerb) flags() []cli.Flag {
	return []cli.Flag{
		{Name: "address", Arg: "ADDRESS", Value: cli.String(&v.address), Usage: "Listen on an address or host name of this machine, or on a unix socket if it has a slash"},
		{Name: "port", Arg: "PORT", Value: cli.Int(&v.port, 0, 65535), Usage: "Listen on that port; 0 takes one that is free, and --json says which"},
		{Name: "tls-cacert", Arg: "FILE", Value: cli.String(&v.tls.CACert), Operand: cli.OperandFile, Usage: "Let clients in whose certificates an authority in FILE (PEM) has signed"},
		{Name: "tls-cert", Arg: "FILE", Value: cli.String(&v.tls.Cert), Operand: cli.OperandFile, Usage: "Show clients the certificate in FILE (PEM)"},
		{Name: "tls-key", Arg: "FILE", Value: cli.String(&v.tls.Key), Operand: cli.OperandFile, Usage: "The private key of --tls-cert (PEM)"},
		{Name: "insecure", Value: cli.Bool(&v.insecure), Usage: "Serve beyond this machine without TLS: whoever reaches the port may read the images"},
		{Name: "metrics", Arg: "HOST:PORT", Value: cli.String(&v.metrics), Usage: "Serve metrics for Prometheus by HTTP, at /metrics"},
		{Name: "max-connections", Arg: "N", Value: noted{cli.Int(&v.opts.MaxConns, 1, 1<<20), &v.most}, Usage: "Serve at most N connections; one that has said nothing yet gives way to a new one. Fewer leave more of the limit of open files to images"},
		{Name: "idle-timeout", Arg: "TIME", Value: cli.Duration(&v.opts.IdleTime, time.Second), Usage: "Close connections that are silent for TIME"},
		{Name: "write-timeout", Arg: "TIME", Value: cli.Duration(&v.opts.WriteTime, 100*time.Millisecond), Usage: "Close connections that do not take a message within TIME"},
		{Name: "stop-timeout", Arg: "TIME", Value: cli.Duration(&v.stopTime, 0), Usage: "When told to end, cut what is in flight after TIME"},
		{Name: "status-fd", Arg: "N", Value: cli.Int(&v.statusFD, 1, 1<<20), Usage: "Write a zero byte to descriptor N and close it, once clients can connect"},
	}
}

// A ready says where the server is to be found.
type ready struct {
	Addresses []string `json:"addresses"`
	TLS       bool     `json:"tls"`
	Images    []string `json:"images"`
	Metrics   string   `json:"metrics,omitempty"`
}

func object() cli.Object {
	return cli.Object{Of: "--json, once it serves", Rows: `
		addresses[]  where it listens: HOST:PORT, or unix:SOCKET
		tls          whether clients have to use TLS
		images[]     the names of the images
		metrics      the address of the metrics; left out without --metrics`}
}

func (v *serveVerb) run(dirs []string) error {
	// A thread that sends holds a processor of Go's: there are to be some for
	// those that answer.
	runtime.GOMAXPROCS(3 * runtime.NumCPU())

	v.log = v.Logger(v.Stderr)
	v.opts.Logger, v.opts.Agent = v.log, "lazyrestore "+version()
	if err := v.check(); err != nil {
		return err
	}
	images := v.fitConnections()
	catalog, err := pageserver.NewCatalog(dirs...)
	if twice, ok := errors.AsType[*pageserver.DuplicateError](err); ok {
		return &cli.UsageError{Problem: twice.Error(), Hint: "rename one of them, or serve it on another port"}
	}
	if err != nil {
		return err
	}
	catalog.MaxFiles = images
	verb.OutliveReaders()
	// Before anything listens: who sees the server may end it.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, verb.NotIgnored(syscall.SIGTERM, syscall.SIGINT)...)
	defer signal.Stop(signals)
	server := pageserver.NewServer(catalog, v.opts)
	listeners, err := v.listen()
	if err != nil {
		return err
	}
	said := ready{TLS: v.withTLS(), Images: catalog.Names()}
	for _, ln := range listeners {
		said.Addresses = append(said.Addresses, addressText(ln.Addr()))
	}
	var exporter *exporter
	if v.metrics != "" {
		if exporter, err = startExporter(v.metrics, server); err != nil {
			closeAll(listeners)
			return err
		}
		defer exporter.Close()
		said.Metrics = exporter.url()
	}
	ended := make(chan error, len(listeners))
	for _, ln := range listeners {
		go func() { ended <- server.Serve(ln) }()
	}
	if err := v.tellReady(said); err != nil {
		v.log.Error("readiness not told", "error", err)
	}
	select {
	case err := <-ended:
		return errors.Join(err, v.stop(server, signals))
	case sig := <-signals:
		v.log.Info("told to end", "signal", sig.String())
		return v.stop(server, signals)
	}
}

// check looks at what flags say together.
func (v *serveVerb) check() error {
	given := 0
	for _, f := range []string{v.tls.CACert, v.tls.Cert, v.tls.Key} {
		if f != "" {
			given++
		}
	}
	if err := checkMetrics(v.metrics); err != nil {
		return err
	}
	switch {
	case given != 0 && given != 3:
		return &cli.UsageError{
			Problem: "--tls-cacert, --tls-cert and --tls-key go together",
			Hint:    "the server shows its certificate, and lets clients in whose certificates the authority has signed",
		}
	case given != 0 && v.insecure:
		return &cli.UsageError{Problem: "--insecure and --tls-cert contradict each other", Hint: "leave --insecure out"}
	}
	return nil
}

// A noted value notes that it was given.
type noted struct {
	cli.Value
	given *bool
}

// Set is cli.Value's.
func (n noted) Set(text string) error {
	*n.given = true
	return n.Value.Set(text)
}

// ownDescriptors is how many the server has room for beside connections and images: its
// own files, its directories, those that images are opened by and a connection that is just accepted.
const ownDescriptors = 24

// fitConnections leaves a quarter of the descriptors to images, and what connections do not need, but for
// an eighth of the quarter to connections that are told that they are too many: those beyond would wait for a descriptor,
// and nobody would tell them that the server is busy. It returns how many the images have.
func (v *serveVerb) fitConnections() (images int) {
	var files syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files) != nil {
		return 0
	}
	own := uint64(ownDescriptors)
	if v.metrics != "" {
		own += 1 + maxScrapers
	}
	all := files.Cur - min(files.Cur, own)
	quarter := all / 4
	most := max(3*quarter, 1)
	v.opts.MaxTold = int(min(max(quarter/8, 1), 64))
	if uint64(v.opts.MaxConns) > most {
		if v.most {
			v.log.Warn("the limit of open files allows fewer connections than --max-connections", "connections", most, "open files", files.Cur)
		}
		v.opts.MaxConns = int(most)
	}
	taken := uint64(v.opts.MaxConns + v.opts.MaxTold)
	return int(min(max(all, taken+1)-taken, math.MaxInt32))
}

// tellReady tells whoever waits that clients can connect.
func (v *serveVerb) tellReady(said ready) error {
	if v.JSON {
		v.PrintJSON(said)
	} else {
		secure := ""
		if said.TLS {
			secure = " with TLS"
		}
		v.Note(fmt.Sprintf("serving %d image(s) on %s%s", len(said.Images), strings.Join(said.Addresses, ", "), secure))
	}
	_, err := daemon.SdNotify(false, daemon.SdNotifyReady)
	if v.statusFD != 0 {
		f := os.NewFile(uintptr(v.statusFD), "--status-fd")
		_, werr := f.Write([]byte{0})
		err = errors.Join(err, werr, f.Close())
	}
	return err
}

// stop ends the server: in peace, unless that takes too long or another signal
// comes.
func (v *serveVerb) stop(server *pageserver.Server, signals <-chan os.Signal) error {
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	ctx, cancel := context.WithTimeout(context.Background(), v.stopTime)
	defer cancel()
	go func() {
		select {
		case <-signals:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := server.Shutdown(ctx); err != nil {
		v.log.Warn("connections were cut", "error", err)
	}
	return nil
}

// version is that of the module, as it was built.
func version() string {
	if buildVersion != "" {
		return buildVersion
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "devel"
}

// buildVersion is set by the linker.
var buildVersion string

// addressText is an address as restore takes it.
func addressText(addr net.Addr) string {
	if addr.Network() == "unix" {
		return "unix:" + addr.String()
	}
	return addr.String()
}
