package client

import (
	"errors"
	"testing"
	"time"
)

// A server crawls that gives next to nothing for long, where there is another one; what is slow but
// honest does not, nor what is asked for one small thing after another.
func TestCrawls(t *testing.T) {
	const timeout, tick = 5 * time.Second, 5 * time.Second / 4
	for _, tt := range []struct {
		name    string
		servers int
		each    int           // bytes that come in a tick
		fresh   bool          // in each tick another request is in flight
		crawled int           // before
		want    time.Duration // when it is found out, at the earliest; 0: never
	}{
		{"a byte now and then", 2, 1, false, 0, 4 * timeout},
		{"nothing, from the only server", 1, 0, false, 0, 0},
		{"a line of 300 bytes a second", 2, 375, false, 0, 0},
		{"a line of 200 bytes a second", 2, 250, false, 0, 4 * timeout},
		{"which was left before", 2, 250, false, 3, 32 * timeout},
		{"which was left often", 2, 250, false, 100, 128 * timeout},
		{"small replies over a long way", 2, 100, true, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &Client{servers: newServers(make([]Server, tt.servers)), opts: Options{Timeout: timeout}}
			s := c.servers.list[0]
			s.crawled = tt.crawled
			start := time.Now()
			r := &request{sent: start}
			k := &conn{lane: &lane{client: c}, server: s, inflight: map[uint32]*request{2: r}}
			for now := start; now.Sub(start) < 200*timeout; now = now.Add(tick) {
				err := k.crawls(now)
				k.came.Add(int64(tt.each))
				if tt.fresh {
					r.sent = now.Add(time.Nanosecond)
				}
				if err == nil {
					continue
				}
				took := now.Sub(start)
				if !errors.Is(err, errCrawls) || tt.want == 0 || took < tt.want || took > tt.want+tick {
					t.Errorf("%v after %v, want it after %v", err, took, tt.want)
				}
				if s.crawled != tt.crawled+1 {
					t.Errorf("it has crawled %d times", s.crawled)
				}
				return
			}
			if tt.want != 0 {
				t.Error("it is never found out")
			}
		})
	}
}
