package lazyrestore

import (
	"log/slog"

	"github.com/lazyrestore/lazyrestore/lazyrestore/trace"
)

// Background says what the pager does besides answering faults.
type Background string

// The ways of the pager. The zero value of a Background means BackgroundFull.
const (
	BackgroundFull Background = "full" // fill all memory while the program runs, then leave
	BackgroundNone Background = "none" // install what is touched, nothing else
)

// OnLost says what becomes of the process when its pages cannot be had: the
// servers do not answer, the disk fails. It never gets to see zeros. OnLostKill and
// OnLostPoison wait for 30 s first. Where the page index cannot be had, without which
// no page can be found, OnLostPoison is OnLostKill.
type OnLost string

// The zero value of an OnLost means OnLostWait.
const (
	OnLostWait   OnLost = "wait"   // it waits where it touches a missing page, until pages come again
	OnLostKill   OnLost = "kill"   // it is killed
	OnLostPoison OnLost = "poison" // it gets SIGBUS where it touches such a page
)

// ChangedFiles says what a restore does with a file that is not as it was.
type ChangedFiles string

// The zero value of a ChangedFiles means ChangedRefuse.
const (
	ChangedRefuse ChangedFiles = "refuse" // a changed file ends the restore
	ChangedWarn   ChangedFiles = "warn"   // a changed file is told of, and opened as it is
)

// Stdio says what becomes of descriptors 0 to 2.
type Stdio string

// The zero value of a Stdio means StdioAuto.
const (
	StdioAuto    Stdio = "auto"    // files as saved; terminals and outside pipes become the caller's own
	StdioSaved   Stdio = "saved"   // all as saved; what cannot be had again, and the terminal under any number, is /dev/null
	StdioInherit Stdio = "inherit" // all three are the caller's own
)

// CheckpointOptions are the wishes of a Checkpoint. The zero value works but
// for Dir.
type CheckpointOptions struct {
	Dir          string // the image to write; absent or an empty directory before
	LeaveRunning bool   // let the process run on as soon as its memory has been read; else it is ended once the image is committed
	Codec        string // zstd[:LEVEL], s2, lz4 or none; empty is zstd
	ChunkSize    int    // bytes of plain data in a chunk, a power of two from 4 KiB to 16 MiB; 0 is 64 KiB
	Workers      int    // encoders at work at once; 0 is one for each CPU
	DryRun       bool   // look whether the process can be held by an image, write nothing

	// Source is for a process that is itself still missing memory: how the image
	// is reached that it comes from.
	Source SourceOptions

	// Progress, if set, is called from one goroutine, about ten times a second.
	Progress func(Progress)
	Logger   *slog.Logger // nil: no log
}

// CheckpointResult is what a Checkpoint did.
type CheckpointResult struct {
	Image       string   `json:"image"`        // CheckpointOptions.Dir
	Digest      string   `json:"digest"`       // "sha256:" and 64 hex digits; empty after a dry run
	FrozenMS    float64  `json:"frozen_ms"`    // for how long the process stood still
	TotalMS     float64  `json:"total_ms"`     // of the whole call
	MemoryBytes uint64   `json:"memory_bytes"` // all of it, zero pages too
	ZeroBytes   uint64   `json:"zero_bytes"`   // of it zero pages, which are not stored
	StoredBytes uint64   `json:"stored_bytes"` // what LazyBytes take in the image, compressed
	LazyBytes   uint64   `json:"lazy_bytes"`   // of it restored when touched; after a dry run with the zero pages
	EagerBytes  uint64   `json:"eager_bytes"`  // of it restored before the first instruction
	Threads     int      `json:"threads"`
	Mappings    int      `json:"mappings"`
	Warnings    []string `json:"warnings,omitempty"`
}

// RestoreOptions are the wishes of a Restore. The zero value works.
type RestoreOptions struct {
	Eager        bool         // load all memory before the program runs
	Background   Background   // what the pager does besides answering faults
	OnLost       OnLost       // what becomes of the process when its pages cannot be had
	Digest       string       // the image's digest, where it has to be a certain one
	ChangedFiles ChangedFiles // what to do with files that are not as they were
	Stdio        Stdio        // what becomes of descriptors 0 to 2
	Workers      int          // decoders at work at once; 0 is one for each CPU
	DryRun       bool         // look whether the image can be restored here, start nothing

	// PIDNamespace gives the process a pid namespace of its own, with a /proc of
	// it, in which it has its old id, whoever has that here. What it has started
	// and left behind ends with it.
	PIDNamespace bool

	// Terminal, if not nil, is what a process gets that had a controlling terminal. Else it has none, and a warning
	// says so. With PIDNamespace it has none either way.
	Terminal *Terminal

	Source SourceOptions // how the image is reached

	// Stages has Stats say where the time of the faults went. Trace, if set,
	// records what the restore does: its own phases, the system calls by which
	// the process builds itself, faults, fetches, the background.
	Stages bool
	Trace  *trace.Recorder

	// Progress, if set, is called from one goroutine, about ten times a second.
	Progress func(Progress)
	Logger   *slog.Logger // nil: no log
}

// RestoreResult is what is known of a Restore once the process runs.
type RestoreResult struct {
	PID        int      `json:"pid"`                 // as the caller sees it
	InnerPID   int      `json:"inner_pid,omitempty"` // in its own pid namespace, where it has one
	TTFIMicros int64    `json:"ttfi_us"`             // from the call of Restore until the first thread was let go; the others may have followed it
	Mappings   int      `json:"mappings"`
	Threads    int      `json:"threads"`
	LazyBytes  uint64   `json:"lazy_bytes"`  // plain; restored when touched
	EagerBytes uint64   `json:"eager_bytes"` // plain; there before the first instruction
	Warnings   []string `json:"warnings,omitempty"`
}

// Stats are what a pager did so far. A fault's time is from the moment at which the
// pager has read it until its page is there.
type Stats struct {
	Faults         uint64  `json:"faults"`
	FaultP50Micros float64 `json:"fault_p50_us"`
	FaultP99Micros float64 `json:"fault_p99_us"`
	FaultMaxMicros float64 `json:"fault_max_us"`
	FetchedBytes   uint64  `json:"fetched_bytes"`   // plain bytes of the chunks read, more than once if need be
	ReceivedBytes  uint64  `json:"received_bytes"`  // of the image, over the network
	CachedBytes    uint64  `json:"cached_bytes"`    // of the image, out of the cache
	InstalledBytes uint64  `json:"installed_bytes"` // of image pages put into the process
	MissingBytes   uint64  `json:"missing_bytes"`   // of image pages that the process still misses
	ResidentMS     float64 `json:"resident_ms"`     // from the first instruction until all was there; 0: not yet
	OutageMS       float64 `json:"outage_ms"`       // for how long no page could be had by now; 0: all is well
	Stages         *Stages `json:"stages,omitempty"`
}

// Stages is where the time of the faults went, from the moment at which the
// pager has read one until its page is there. See pager.Stages.
type Stages struct {
	Queue  Stage `json:"queue"`
	Fetch  Stage `json:"fetch"`
	Decode Stage `json:"decode"`
	Copy   Stage `json:"copy"`
}

// A Stage is one part of all faults: mean and percentiles, in microseconds.
type Stage struct {
	MeanMicros float64 `json:"mean_us"`
	P50Micros  float64 `json:"p50_us"`
	P99Micros  float64 `json:"p99_us"`
}

// Progress is how far a Checkpoint or a Restore has come.
type Progress struct {
	Phase       string // what is done now: one word, "freeze", "write", "fill"
	Done, Total uint64 // bytes of memory in this phase; Total 0: not known
	Pager       *Stats // what the pager did so far; nil where there is none
}
