package pager

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Stats says what a pager has done so far.
type Stats struct {
	Faults         uint64        // faults on missing pages
	FaultP50       time.Duration // from the reading of a fault to its page being there, median
	FaultP99       time.Duration // the same, 99th percentile
	FaultMax       time.Duration // the same, the longest so far
	FetchedBytes   uint64        // plain bytes of the chunks read, more than once if need be
	InstalledBytes uint64        // bytes of image pages put into the process
	ZeroBytes      uint64        // bytes of pages that no image holds, put in as zeros
	PoisonedBytes  uint64        // bytes that could not be had; touching them raises SIGBUS
	MissingBytes   uint64        // bytes of image pages that the process still misses
	Resident       time.Duration // from the start of Serve to the last page; 0 until then
	Outage         time.Duration // for how long reads have failed by now; 0 while the source answers
	Stages         *Stages       // nil unless Options.Stages or Options.Trace is set
}

// counters are the running values behind Stats.
type counters struct {
	faults, fetched, installed, zero, poisoned atomic.Uint64
	resident                                   atomic.Int64
	latency                                    histogram
	outage                                     outage
	stages                                     *stageCounters // nil: not counted
}

// A histogram counts durations in buckets of a sixteenth of their power of
// two, so that a quantile is no more than 6 % off. Any number of goroutines
// may add at once.
type histogram struct {
	counts [61 * subBuckets]atomic.Uint32
}

const subBuckets = 16

func (h *histogram) add(d time.Duration) {
	h.counts[bucketOf(uint64(max(d, 0)))].Add(1)
}

// largest is the longest duration added, no more than 6 % off; 0 where there
// are none.
func (h *histogram) largest() time.Duration {
	for i := len(h.counts) - 1; i >= 0; i-- {
		if h.counts[i].Load() > 0 {
			return time.Duration(bucketEnd(i))
		}
	}
	return 0
}

// bucketOf keeps the top five bits of v.
func bucketOf(v uint64) int {
	shift := max(bits.Len64(v)-5, 0)
	return shift*subBuckets + int(v>>shift)
}

// bucketEnd is the largest value in bucket i.
func bucketEnd(i int) uint64 {
	if i < 2*subBuckets {
		return uint64(i)
	}
	shift := i/subBuckets - 1
	return (uint64(i-shift*subBuckets)+1)<<shift - 1
}

// quantile is a value that no more than the share 1-q of all lie above; 0
// where there are none.
func (h *histogram) quantile(q float64) time.Duration {
	var total uint64
	for i := range h.counts {
		total += uint64(h.counts[i].Load())
	}
	if total == 0 {
		return 0
	}
	want := uint64(q * float64(total))
	var seen uint64
	for i := range h.counts {
		if seen += uint64(h.counts[i].Load()); seen > want || seen == total {
			return time.Duration(bucketEnd(i))
		}
	}
	return 0
}
