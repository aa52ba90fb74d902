package pager

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/uffd"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// The benchmarks measure in the process that is served, which is this test
// binary again: it maps memory, sends its uffd, and touches pages when told.
const toucherEnv = "LAZYRESTORE_PAGER_TOUCHER"

// touchPlan is what a toucher does.
type touchPlan struct {
	Bytes   int
	Touches int // random pages, each once; all in order if zero
}

// touched is what it measured.
type touched struct {
	Start          uint64 // of its memory; sent first
	Mean, P50, P99 time.Duration
	Total          time.Duration
}

// beToucher is that process. Its descriptor 3 is the socket for the uffd.
func beToucher(config string) error {
	var plan touchPlan
	if err := json.Unmarshal([]byte(config), &plan); err != nil {
		return err
	}
	mem, err := unix.Mmap(-1, 0, plan.Bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	u, err := uffd.Open(uffd.CloseOnExec | uffd.NonBlock)
	if err != nil {
		return err
	}
	if _, err := u.Enable(events); err != nil {
		return err
	}
	start := uint64(addressOf(mem))
	if _, err := u.Register(start, uint64(plan.Bytes), uffd.ModeMissing); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(touched{Start: start}); err != nil {
		return err
	}
	if err := uffd.SendFD(3, u, []byte{1}); err != nil {
		return err
	}
	if err := u.Close(); err != nil {
		return err
	}
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		return err
	}
	return out.Encode(touch(mem, plan))
}

func touch(mem []byte, plan touchPlan) touched {
	r := rand.New(rand.NewPCG(1, 2))
	n := len(mem) / page.Size
	var pages []int
	if plan.Touches > 0 {
		pages = r.Perm(n)[:plan.Touches]
	} else {
		for i := range n {
			pages = append(pages, i)
		}
	}
	times := make([]time.Duration, len(pages))
	begin := time.Now()
	last := begin
	for i, k := range pages {
		touchSink += mem[k*page.Size]
		now := time.Now()
		times[i] = now.Sub(last)
		last = now
	}
	total := last.Sub(begin)
	slices.Sort(times)
	return touched{Mean: total / time.Duration(len(pages)), P50: times[len(times)/2], P99: times[len(times)*99/100], Total: total}
}

var touchSink byte

// A toucher is such a process, at rest.
type toucher struct {
	cmd   *exec.Cmd
	in    *os.File
	lines *bufio.Reader
	u     *uffd.FD
	start page.Addr
}

func startToucher(b *testing.B, plan touchPlan) *toucher {
	b.Helper()
	uffdtest.Need(b, "uffd")
	config, err := json.Marshal(plan)
	if err != nil {
		b.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = unix.Close(pair[0]) }()
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), toucherEnv+"="+string(config), "GOGC=off")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	r, w, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	cmd.Stdin = r
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	_, _ = r.Close(), theirs.Close()
	t := &toucher{cmd: cmd, in: w, lines: bufio.NewReader(out)}
	t.start = page.Addr(t.result(b).Start)
	if t.u, _, err = uffd.ReceiveFD(pair[0], make([]byte, 1)); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = w.Close()
	})
	return t
}

func (t *toucher) result(b *testing.B) (res touched) {
	b.Helper()
	line, err := t.lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &res)
	}
	if err != nil {
		b.Fatalf("the process that touches: %v", err)
	}
	return res
}

// touch lets it go and gives what it measured.
func (t *toucher) touch(b *testing.B) touched {
	b.Helper()
	if _, err := t.in.Write([]byte{1}); err != nil {
		b.Fatal(err)
	}
	return t.result(b)
}

// benchImage is an image of n bytes at at whose chunks lz4 halves.
func benchImage(b *testing.B, at page.Addr, n int, opts image.WriterOptions) *image.Image {
	b.Helper()
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(3, 4))
	for i := 0; i < n; i += 512 {
		for k := range 32 {
			order64.PutUint64(p[i+8*k:], r.Uint64())
		}
		for k := 256; k < 512; k += 32 {
			copy(p[i+k:], "a checkpoint of a large program.")
		}
	}
	mem, _ := imagetest.Write(b, opts, imagetest.Run{At: at, P: p})
	img, err := image.Open(b.Context(), mem, image.OpenOptions{})
	if err != nil {
		b.Fatal(err)
	}
	return img
}

var benchCases = []struct {
	name       string
	writer     image.WriterOptions
	background Background
}{
	{"none-4KiB", image.WriterOptions{ChunkSize: page.Size}, None},
	{"lz4-64KiB", image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}}, None},
	{"lz4-64KiB-background", image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}}, Full},
}

// BenchmarkTouchRandom is the time of one touch of a random page. "bare" is
// the floor: a thread that spins, and copies one and the same page.
func BenchmarkTouchRandom(b *testing.B) {
	plan := touchPlan{Bytes: 512 << 20, Touches: 2000}
	b.Run("bare", func(b *testing.B) {
		for b.Loop() {
			t := startToucher(b, plan)
			stop := make(chan struct{})
			done := make(chan struct{})
			go func() {
				defer close(done)
				serveBare(t.u, stop)
			}()
			report(b, t.touch(b))
			close(stop)
			<-done
			_ = t.u.Close()
		}
	})
	for _, c := range benchCases {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				benchPager(b, plan, c.writer, c.background)
			}
		})
	}
}

// BenchmarkTouchAll is the rate at which a process that touches all its
// memory in order gets it.
func BenchmarkTouchAll(b *testing.B) {
	plan := touchPlan{Bytes: 1 << 30}
	b.Run("bulk", func(b *testing.B) {
		for b.Loop() {
			t := startToucher(b, plan)
			src := make([]byte, 1<<20)
			begin := time.Now()
			for at := 0; at < plan.Bytes; at += len(src) {
				if _, err := t.u.Copy(uint64(t.start)+uint64(at), src, 0); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(plan.Bytes)/1e6/time.Since(begin).Seconds(), "MB/s")
			_ = t.u.Close()
		}
	})
	for _, c := range benchCases {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				res := benchPager(b, plan, c.writer, c.background)
				b.ReportMetric(float64(plan.Bytes)/1e6/res.Total.Seconds(), "MB/s")
			}
		})
	}
}

func benchPager(b *testing.B, plan touchPlan, opts image.WriterOptions, bg Background) touched {
	b.Helper()
	b.StopTimer()
	t := startToucher(b, plan)
	img := benchImage(b, t.start, plan.Bytes, opts)
	p, err := New(img, Options{Background: bg})
	if err != nil {
		b.Fatal(err)
	}
	if err := p.Prepare(b.Context()); err != nil {
		b.Fatal(err)
	}
	target := Target{Pid: t.cmd.Process.Pid, PidFD: -1}
	maps := []page.Mapping{{Range: page.RangeOf(t.start, uint64(plan.Bytes)), Image: t.start, PageSize: page.Size}}
	if err := p.Attach(t.u, target, maps); err != nil {
		b.Fatal(err)
	}
	runtime.GC() // a real pager's heap is small
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	done := make(chan error, 1)
	b.StartTimer()
	go func() {
		done <- p.Serve(ctx, t.u, target, maps)
	}()
	res := t.touch(b)
	b.StopTimer()
	_ = t.cmd.Process.Kill()
	_ = t.cmd.Wait()
	cancel()
	<-done
	report(b, res)
	st := p.Stats()
	b.ReportMetric(float64(st.Faults), "faults")
	b.ReportMetric(float64(st.FaultP50.Nanoseconds()), "serve-p50-ns")
	b.StartTimer()
	return res
}

func report(b *testing.B, res touched) {
	b.ReportMetric(float64(res.Mean.Nanoseconds()), "mean-ns")
	b.ReportMetric(float64(res.P50.Nanoseconds()), "p50-ns")
	b.ReportMetric(float64(res.P99.Nanoseconds()), "p99-ns")
}

// serveBare serves faults with one page until stop is closed.
func serveBare(u *uffd.FD, stop chan struct{}) {
	src := make([]byte, page.Size)
	var msgs [batch]uffd.Msg
	for {
		select {
		case <-stop:
			return
		default:
		}
		n, _ := u.Read(msgs[:])
		for i := range msgs[:n] {
			if _, err := u.Copy(msgs[i].Fault().Addr, src, 0); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	}
}
