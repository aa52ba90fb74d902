package client

import (
	"errors"
	"fmt"
	"time"
)

// A server that gives a byte now and then is never silent, and a request that it has begun
// would never end. It is left for another one where it gives less than leastRate for as long as
// crawlTimes the time after which a server is silent: 5 KiB in 20 s.
//
// A line that honestly is as slow is not to be cut again and again, whatever the other server is worth:
// with each time it is given twice as long, up to crawlTimes<<mostCrawled, within which as much as is
// not asked for again (slice) has come at half that rate.
const (
	leastRate   = 256 // bytes a second; a page takes 16 s
	crawlTimes  = 4
	mostCrawled = 5
)

var errCrawls = errors.New("the server gives next to nothing")

// A mark is when it was last looked what a connection gives, and what had come by then.
type mark struct {
	at   time.Time
	came int64
}

// crawls is an error if the connection gives next to nothing of what was asked for all the while since the mark, and there
// is another server. It then counts against the server. The caller holds lane.mu.
func (k *conn) crawls(now time.Time) error {
	ss := k.lane.client.servers
	if len(ss.list) == 1 {
		return nil
	}
	waits := false
	for _, r := range k.inflight {
		waits = waits || !r.sent.After(k.mark.at)
	}
	came, took := k.came.Load()-k.mark.came, now.Sub(k.mark.at)
	if waits && took < ss.bears(k.server, k.lane.client.opts.Timeout) {
		return nil
	}
	k.mark = mark{now, k.mark.came + came}
	if !waits || float64(came) >= leastRate*took.Seconds() {
		return nil
	}
	ss.crawls(k.server)
	return fmt.Errorf("%w: %d bytes in %v", errCrawls, came, took.Round(time.Millisecond))
}

// bears is for how long s may give next to nothing, where it may be silent for timeout.
func (ss *servers) bears(s *server, timeout time.Duration) time.Duration {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return crawlTimes * timeout << min(s.crawled, mostCrawled)
}

// crawls notes that s is left for it.
func (ss *servers) crawls(s *server) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s.crawled++
}
