package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

func get(t *testing.T, url string) []byte {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v: %s", url, r.Status, err, b)
	}
	return b
}

// used is a server that has been used: one read, one error.
func used(t *testing.T) *server {
	t.Helper()
	dir := t.TempDir()
	writeImage(t, filepath.Join(dir, "one"), 1)
	s := prepare(t, "--port", "0", "--metrics", "127.0.0.1:0", dir).start(t)
	wantImage(t, dial(t, s.Addresses[0]), filepath.Join(dir, "one"))
	if _, err := fetch(t, dial(t, s.Addresses[0]), "two"); err == nil {
		t.Error("an image that is not there")
	}
	return s
}

func TestMetrics(t *testing.T) {
	uffdtest.Need(t, "cmd:promtool")
	s := used(t)
	text := get(t, s.Metrics)
	for _, want := range []string{
		"\nlazyrestore_server_connections_accepted_total 2\n",
		"\nlazyrestore_server_read_duration_seconds_count{lane=\"demand\"} 1\n",
		"\nlazyrestore_server_read_duration_seconds_count{lane=\"background\"} 0\n",
		"\nlazyrestore_server_errors_total{code=\"no_image\"} ",
		"\nlazyrestore_server_build_info{version=",
		"\ngo_goroutines ",
	} {
		if !strings.Contains("\n"+string(text), want) {
			t.Errorf("no %q in the metrics", want)
		}
	}
	check := exec.Command("promtool", "check", "metrics")
	check.Stdin = bytes.NewReader(text)
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	s.stop(t)
}

// Who connects to the metrics' port and says nothing takes no descriptors from the page server.
func TestMetricsConnectionsAreFew(t *testing.T) {
	s := used(t)
	descriptors := func() int {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := descriptors()
	address := strings.TrimSuffix(strings.TrimPrefix(s.Metrics, "http://"), "/metrics")
	for range 10 * maxScrapers {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for limit := time.Now().Add(uffdtest.Timeout); descriptors() < before+maxScrapers/2; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("connections are not taken")
		}
	}
	time.Sleep(100 * time.Millisecond) // for more to be taken, which nothing tells of
	if n := descriptors() - before; n > maxScrapers+2 {
		t.Errorf("%d connections are held, want %d", n, maxScrapers)
	}
	s.stop(t)
}

// A Prometheus scrapes the server, and has its numbers.
func TestPrometheus(t *testing.T) {
	uffdtest.Need(t, "cmd:prometheus")
	s := used(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	text := fmt.Sprintf("scrape_configs:\n- job_name: lazyrestore\n  scrape_interval: 1s\n  scrape_timeout: 1s\n  static_configs:\n  - targets: [%q]\n",
		strings.TrimSuffix(strings.TrimPrefix(s.Metrics, "http://"), "/metrics"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	address := freeAddress(t)
	prometheus := exec.Command("prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)
	var log bytes.Buffer
	prometheus.Stderr = &log
	if err := prometheus.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = prometheus.Process.Kill()
		_ = prometheus.Wait()
	}()
	query := "http://" + address + "/api/v1/query?query=" + url.QueryEscape(`lazyrestore_server_read_duration_seconds_count{lane="demand"}`)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		got, err := sample(ctx, query)
		if got == "1" {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("Prometheus has %q, %v, want 1\n%s", got, err, &log)
		}
		time.Sleep(50 * time.Millisecond) // it has no way to tell when it has scraped
	}
	s.stop(t)
}

// sample is the value that a query of one sample gives.
func sample(ctx context.Context, query string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, query, nil)
	if err != nil {
		return "", err
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	var answer struct {
		Data struct{ Result []struct{ Value [2]any } }
	}
	if err := json.NewDecoder(r.Body).Decode(&answer); err != nil || len(answer.Data.Result) != 1 {
		return "", err
	}
	return fmt.Sprint(answer.Data.Result[0].Value[1]), nil
}

// freeAddress is one of the loopback interface that nobody takes meanwhile.
func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.132.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}
