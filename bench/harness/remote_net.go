package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lazyrestore/lazyrestore/bench/workload"
)

// bareTCP is the mean time of a request and its reply of so many bytes on
// loopback, in nanoseconds, by a client and a server in C, each a process. The
// client spins, as the pager does, or sleeps until the reply is there. Where the
// scheduler puts the two is what such a time swings by, and is so for as long as
// they live: it is the median of three pairs.
func (e *Env) bareTCP(ctx context.Context, reply int, spin bool) (float64, error) {
	bin, err := e.builder.C(ctx, "reply")
	if err != nil {
		return 0, err
	}
	args := []string{"-n", strconv.Itoa(touchCount), "-b", strconv.Itoa(reply)}
	if spin {
		args = append(args, "-s")
	}
	var means []float64
	for range 3 {
		text, err := exec.CommandContext(ctx, bin, args...).Output()
		if err != nil {
			return 0, fmt.Errorf("bare TCP in C: %w", err)
		}
		line, ok := lineOf(string(text), "replies")
		if !ok {
			return 0, fmt.Errorf("bare TCP in C: no replies in what it printed: %q", text)
		}
		means = append(means, float64(numbers(line)["mean_ns"]))
	}
	return median(means), nil
}

// A gigabit is a network namespace at the other end of a link of 1 Gbit/s.
type gigabit struct {
	name      string
	here, far string // addresses
}

const (
	gigabitRate = "1gbit"
	// gigabitBurst takes a packet of the kernel's, of up to 64 KiB and the headers of
	// all its frames, as one. One that is larger than the burst tc cuts into frames,
	// and then the line takes two fifths of two processors, and is not full where other
	// programs want these.
	gigabitBurst = "128kb"
	// gigabitPayload is what it carries for TCP, in bytes a second: 1448 bytes
	// of each 1514 that tc counts.
	gigabitPayload = 1e9 / 8 * 1448 / 1514
)

// newGigabit makes one. It needs root, ip and tc.
func newGigabit() (*gigabit, error) {
	id := strconv.Itoa(os.Getpid())
	g := &gigabit{name: "lrbench" + id, here: "10.213.77.1", far: "10.213.77.2"}
	a, b := "lrb"+id, "lrc"+id
	tbf := " root tbf rate " + gigabitRate + " burst " + gigabitBurst + " latency 20ms"
	for _, line := range []string{
		"ip netns add " + g.name,
		"ip link add " + a + " type veth peer name " + b + " netns " + g.name,
		"ip address add " + g.here + "/24 dev " + a,
		"ip link set " + a + " up",
		"ip -n " + g.name + " address add " + g.far + "/24 dev " + b,
		"ip -n " + g.name + " link set " + b + " up",
		"ip -n " + g.name + " link set lo up",
		"tc qdisc add dev " + a + tbf,
		"tc -n " + g.name + " qdisc add dev " + b + tbf,
	} {
		words := strings.Fields(line)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w: %s", line, err, out), g.close())
		}
	}
	return g, nil
}

func (g *gigabit) close() error { return exec.Command("ip", "netns", "delete", g.name).Run() }

// across is lazyrestore with its server at the other end.
type across struct {
	served
	net *gigabit
}

func (a *across) Name() string { return a.ours.Name() + "-gigabit" }

// Prepare starts the server.
func (a *across) Prepare(ctx context.Context, dir string) ([]*command, error) {
	if _, err := a.ours.Prepare(ctx, dir); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", a.net.name, a.bin, "serve", "--quiet", "--json",
		"--insecure", "--address", a.net.far, "--port", "0", dir)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	server, err := launch("lazyrestore serve", cmd)
	if err != nil {
		return nil, err
	}
	var said struct{ Addresses []string }
	if err := json.NewDecoder(stdout).Decode(&said); err != nil || len(said.Addresses) == 0 {
		return []*command{server}, fmt.Errorf("wait for the page server: %w", errors.Join(err, errors.New(server.said.String())))
	}
	a.address = said.Addresses[0]
	return []*command{server}, nil
}

// copyRate is what a plain copy of a file over the link comes to, in bytes a
// second.
func (g *gigabit) copyRate(ctx context.Context, file string) (float64, error) {
	ln, err := net.Listen("tcp", g.here+":0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	host, port, _ := net.SplitHostPort(ln.Addr().String())
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", g.name, "bash", "-c", "cat "+file+" > /dev/tcp/"+host+"/"+port)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	conn, err := ln.Accept()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	n, err := io.Copy(io.Discard, conn)
	took := time.Since(begin)
	conn.Close()
	return float64(n) / took.Seconds(), errors.Join(err, cmd.Wait())
}

// remoteFill has programs filled over the link. A plain copy of the same bytes
// is shown beside: on a busy machine it does not fill the link either.
func remoteFill(ctx context.Context, env *Env) (_ *Result, err error) {
	g, err := newGigabit()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	mib := env.mib(512)
	program, err := env.builder.Mappings(ctx, workload.MappingsOptions{MiB: mib, Touches: -1})
	if err != nil {
		return nil, err
	}
	subject := &across{served: served{ours: ours{bin: env.opts.Lazyrestore, stats: env.path("fill.json")}}, net: g}
	result := &Result{}
	own, plain, line := result.series(subject.Name(), "B/s"), result.series("plain-tcp-copy", "B/s"), result.series("line", "B/s")
	var frames string
	env.rounds(ctx, env.runs(5),
		env.turnOf(ctx, subject, program, own, func(ctx context.Context, img *image) (float64, error) {
			frames = filepath.Join(img.dir, "pages.lz4")
			restored, err := env.restore(ctx, subject, img)
			if err != nil {
				return 0, err
			}
			// Its loop of clock readings would take one processor of two.
			if err := restored.Signal(syscall.SIGSTOP); err != nil {
				return 0, err
			}
			values, err := restored.statsOf(ctx, subject.stats)
			if stopped := restored.Stop(); err == nil {
				err = stopped
			}
			if err != nil {
				return 0, err
			}
			// Of the bytes as they are stored, so that it stands beside the copy.
			info, err := os.Stat(frames)
			if err != nil {
				return 0, err
			}
			return float64(info.Size()) / (values["resident_ms"].(float64) / 1000), nil
		}),
		&turn{series: plain, sample: func(ctx context.Context) (float64, error) { return g.copyRate(ctx, frames) }},
		&turn{series: line, sample: func(context.Context) (float64, error) { return gigabitPayload, nil }})
	return result.divide(own, line), nil
}
