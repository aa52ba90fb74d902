// Command gcload keeps Go's garbage collector at work: goroutines that replace
// parts of a live heap of maps, slices and linked nodes, timers that fire, and
// channels between them. Its result depends on nothing but its options.
//
//	gcload [-mib N] [-workers N] [-steps N]
//
// It prints "step N" as steps are done and at the end "result CHECKSUM".
package main

import (
	"encoding/binary"
	"flag"
	"fmt"
	"hash/fnv"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// A node is a small object with pointers, for the collector to walk.
type node struct {
	next    *node
	value   uint64
	payload []byte
}

// A worker owns a part of the heap and changes some of it in each step.
type worker struct {
	seed  uint64
	table map[string]*node
	rows  [][]uint64
}

const (
	rowWords  = 512
	entrySize = 400 // bytes of heap that one table entry takes, about
)

func (w *worker) random() uint64 {
	w.seed ^= w.seed << 13
	w.seed ^= w.seed >> 7
	w.seed ^= w.seed << 17
	return w.seed
}

func newWorker(number, bytes int) *worker {
	w := &worker{seed: uint64(number)*0x9e3779b97f4a7c15 + 1, table: map[string]*node{}}
	for range bytes / 2 / (rowWords * 8) {
		w.rows = append(w.rows, w.row())
	}
	for i := range bytes / 2 / entrySize {
		w.put(i)
	}
	return w
}

func (w *worker) row() []uint64 {
	row := make([]uint64, rowWords)
	for i := range row {
		row[i] = w.random() >> 40 // as counters are: mostly zero bytes
	}
	return row
}

func (w *worker) put(i int) {
	key := "entry-" + strconv.Itoa(i)
	head := &node{value: w.random(), payload: make([]byte, 64)}
	binary.LittleEndian.PutUint64(head.payload, w.random())
	if old := w.table[key]; old != nil {
		head.next = &node{value: old.value, payload: old.payload}
	}
	w.table[key] = head
}

// step replaces a few hundredths of what the worker holds.
func (w *worker) step() uint64 {
	for range len(w.rows)/50 + 1 {
		w.rows[w.random()%uint64(len(w.rows))] = w.row()
	}
	for range len(w.table)/50 + 1 {
		w.put(int(w.random() % uint64(len(w.table))))
	}
	return w.random()
}

// sum is over everything, in an order of its own: a map has none.
func (w *worker) sum() uint64 {
	h := fnv.New64a()
	word := make([]byte, 8)
	add := func(v uint64) {
		binary.LittleEndian.PutUint64(word, v)
		h.Write(word)
	}
	for _, row := range w.rows {
		for _, v := range row {
			add(v)
		}
	}
	for i := range len(w.table) {
		for n := w.table["entry-"+strconv.Itoa(i)]; n != nil; n = n.next {
			add(n.value)
			h.Write(n.payload)
		}
	}
	return h.Sum64()
}

// ticks has timers fire for as long as the program runs; each one allocates.
func ticks(stop <-chan struct{}) *atomic.Int64 {
	var count atomic.Int64
	go func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				time.AfterFunc(time.Millisecond, func() { count.Add(1) })
			}
		}
	}()
	return &count
}

func run(workers []*worker, steps int) uint64 {
	var total uint64
	for step := 1; step <= steps; step++ {
		results := make(chan uint64, len(workers))
		var all sync.WaitGroup
		for _, w := range workers {
			all.Go(func() { results <- w.step() })
		}
		all.Wait()
		close(results)
		for v := range results {
			total += v
		}
		fmt.Println("step", step)
	}
	return total
}

func main() {
	mib := flag.Int("mib", 256, "size of the live heap")
	count := flag.Int("workers", 4, "goroutines that change it")
	steps := flag.Int("steps", 100, "how often")
	flag.Parse()
	if *mib < 1 || *count < 1 || *steps < 1 {
		fmt.Fprintln(os.Stderr, "gcload: every option is 1 or more")
		os.Exit(2)
	}
	debug.SetGCPercent(30)

	if path := os.Getenv("LAZYRESTORE_STAMP"); path != "" {
		if err := stamps(path); err != nil {
			fmt.Fprintln(os.Stderr, "gcload:", err)
			os.Exit(1)
		}
	}
	stop := make(chan struct{})
	fired := ticks(stop)
	workers := make([]*worker, *count)
	for i := range workers {
		workers[i] = newWorker(i+1, *mib<<20 / *count)
	}
	sum := run(workers, *steps)
	for _, w := range workers {
		sum = sum*31 + w.sum()
	}
	close(stop)
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	fmt.Fprintf(os.Stderr, "gcload: %d collections, %d timers\n", stats.NumGC, fired.Load())
	fmt.Printf("result %016x\n", sum)
}
