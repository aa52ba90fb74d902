package pager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/thread"
	"github.com/lazyrestore/lazyrestore/lazyrestore/trace"
	"github.com/lazyrestore/lazyrestore/uffd"
)

// Background says whether pages are fetched that nobody has asked for yet.
type Background uint8

// The values of Background.
const (
	Full Background = iota // all pages, until the process is resident
	None                   // only what is touched, until the process ends
)

// String is the value in the words of the command line.
func (b Background) String() string {
	if b == None {
		return "none"
	}
	return "full"
}

// DefaultRetry is how long a read that fails is tried again, unless the process
// is to wait.
const DefaultRetry = 30 * time.Second

// demandWorkers bounds how many chunks are waited for at once.
const demandWorkers = 16

// Options says how a Pager works. The zero value does.
type Options struct {
	Background Background
	// Workers is how many background workers fill memory; as many as there
	// are processors if zero.
	Workers int
	// OnLost is what becomes of the process when a read fails and fails. A
	// frame that is damaged, of a source that gives no other bytes, never gets
	// better: there Wait poisons.
	OnLost OnLost
	// Retry is how long a read that fails is tried again before its pages are
	// given up, with Kill and Poison; DefaultRetry if zero.
	Retry time.Duration
	// HugePages are ranges of the process that had transparent huge pages,
	// which are rebuilt once it is resident.
	HugePages []page.Range
	// Keeper holds the descriptors if this process is killed. Serve starts one
	// if it is nil. Either way it ends once nothing is missing any more.
	Keeper *Keeper
	// Gather says that processes come one by one, some of them while
	// ServeAttached runs, until Gathered is called. See there.
	Gather bool
	// Runs, if not nil, is closed when the process is let go. Until then the pager
	// answers faults, and leaves the processors to who builds the process.
	Runs   <-chan struct{}
	Logger *slog.Logger // discards if nil
	// Done, if not nil, is called once, before the last process that lives is let go, unless pages were given up: from
	// then on nothing is missing, also if this process is killed before Serve returns.
	Done func()

	// Stages has Stats say where the time of the faults went, Trace records
	// each fault and what else is done. Both cost a look at the clock or three
	// for each fault.
	Stages bool
	Trace  *trace.Recorder // records nothing if nil
}

// A Target is the process served.
type Target struct {
	Pid   int
	PidFD int // a pidfd of it, which stays the caller's; -1 if there is none
	// Taken says, to Attach, that the userfaultfd was taken from another process (Leftover.Take), which may have it
	// open for longer: memory is unregistered then before it is closed.
	Taken bool
}

// A Pager fills the missing pages of a process, and of what it forks, from an
// image. See the package comment. Serve may be called once; the other methods
// at any time, concurrently.
type Pager struct {
	img      *image.Image
	opts     Options
	stats    counters
	resident chan struct{}
	serving  chan struct{}
	lost     lostErrors
	attached *attachment // of the caller of Attach, Serve and Resume; its world, once there is a session, of the reader

	prepare sync.Mutex
	table   *table // guarded by prepare

	mu        sync.Mutex
	session   *session   // guarded by mu: from the start of Serve on
	over      bool       // guarded by mu: Serve has come to its end, or never will begin, and the table is gone
	gathered  bool       // guarded by mu
	abandoned bool       // guarded by mu
	held      []*uffd.FD // guarded by mu: see Hold
}

// New is a pager for img. It starts nothing and reads nothing.
func New(img *image.Image, opts Options) (*Pager, error) {
	switch {
	case opts.Background > None:
		return nil, fmt.Errorf("pager: no such background: %d", opts.Background)
	case opts.OnLost > Poison:
		return nil, fmt.Errorf("pager: no such policy for lost pages: %d", opts.OnLost)
	case opts.Workers < 0:
		return nil, fmt.Errorf("pager: %d background workers", opts.Workers)
	}
	if opts.Workers == 0 {
		opts.Workers = runtime.NumCPU()
	}
	if opts.Retry == 0 {
		opts.Retry = DefaultRetry
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Pager{img: img, opts: opts, resident: make(chan struct{}), serving: make(chan struct{}), lost: lostErrors{first: make(chan struct{})}}
	if opts.Stages || opts.Trace != nil {
		p.stats.stages = new(stageCounters)
	}
	return p, nil
}

// Prepare opens the image's index, which Serve does else. It may run while
// the process is still being built. The index itself is loaded by parts, when
// the process is served.
func (p *Pager) Prepare(ctx context.Context) error {
	p.prepare.Lock()
	defer p.prepare.Unlock()
	if p.isOver() {
		return fmt.Errorf("pager: %w", errOver)
	}
	if p.table != nil {
		return nil
	}
	defer p.opts.Trace.Begin(p.opts.Trace.Row(traceCommand, "index"), "open the page index")()
	t, err := openTable(ctx, p.img)
	if err != nil {
		return fmt.Errorf("pager: %w", err)
	}
	p.table = t
	return nil
}

// Keep gives the pager a keeper, as Options.Keeper does. It is called before
// Attach, or not at all.
func (p *Pager) Keep(k *Keeper) { p.opts.Keeper = k }

// Attach writes down, where it outlives this process, what Serve is to serve,
// and starts the keeper if there is none. Serve does it else. Call it before
// the process runs: then there is no moment at which killing this process
// loses anything. The arguments are Serve's, and so is the ownership of u.
//
// With Options.Gather it may be called several times, also while ServeAttached
// runs, and then returns once the process is served. Pidfds are not looked at
// then.
func (p *Pager) Attach(u *uffd.FD, target Target, maps []page.Mapping) error {
	if p.opts.Gather {
		if err := p.attachMore(u, target, maps); err != nil {
			return fmt.Errorf("pager: %w", err)
		}
		return nil
	}
	l, err := newLayout(maps)
	if err != nil {
		return fmt.Errorf("pager: %w", err)
	}
	w := &world{}
	w.add(u.Fd(), target.Pid, l).taken = target.Taken
	return p.attach(w, []*uffd.FD{u}, target)
}

// An attachment is the process that is to be served, written down.
type attachment struct {
	world   *world
	fds     []*uffd.FD // of the world's spaces
	target  Target
	journal *journal
}

func (p *Pager) attach(w *world, fds []*uffd.FD, target Target) error {
	for _, u := range fds {
		if err := unix.SetNonblock(u.Fd(), true); err != nil {
			return fmt.Errorf("pager: userfaultfd: %w", err)
		}
	}
	if err := p.haveKeeper(); err != nil {
		return fmt.Errorf("pager: %w", err)
	}
	j, err := newJournal(w)
	if err != nil {
		return fmt.Errorf("pager: %w", err)
	}
	p.attached = &attachment{world: w, fds: fds, target: target, journal: j}
	return nil
}

// Serve serves the process whose uffd u is and whose missing memory maps
// describes, and all that it forks, until everything is resident or they are
// gone. It then closes u and ends the keeper.
//
// It takes ownership of u only if it returns nil or a *LostError. Else pages
// are still missing, u stays open, and so does the keeper, which holds it even
// if this process ends: threads that touch missing pages wait, for a
// successor (Resume). The error then wraps the context's, or that of what made
// serving impossible.
//
// It sets GOMAXPROCS to two more than Options.Workers where that is less,
// though not where it is 1, and leaves it so.
//
// A *LostError means that all is resident or poisoned, or the process killed:
// some pages could not be had, and touching them raises SIGBUS. Where they are of
// shared memory, Serve goes on as long as the process lives. Where the index
// cannot be had, no page can, and the process is killed, unless it is to wait
// and the index not damaged, or there is no pidfd.
func (p *Pager) Serve(ctx context.Context, u *uffd.FD, target Target, maps []page.Mapping) error {
	if p.attached == nil {
		if err := p.Attach(u, target, maps); err != nil {
			return err
		}
	}
	return p.serve(ctx)
}

// serve serves what is attached.
func (p *Pager) serve(ctx context.Context) (err error) {
	defer func() {
		if err != nil && !errors.As(err, new(*LostError)) {
			p.leave()
		}
	}()
	start := time.Now()
	if err := p.load(ctx); err != nil {
		return p.notLoaded(ctx, err)
	}
	se, err := p.begin(start)
	if err != nil {
		return fmt.Errorf("pager: %w", err)
	}
	defer se.close()
	defer close(se.over)
	if err := p.run(ctx, se); err != nil {
		return fmt.Errorf("pager: %w", err)
	}
	if err := p.awaitHeld(ctx); err != nil {
		return fmt.Errorf("pager: %w", err)
	}
	if err := p.end(); err != nil {
		return fmt.Errorf("pager: %w", err)
	}
	return p.lost.err()
}

// leave lets a successor, who may be another process, have what is attached.
func (p *Pager) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.attached != nil && !p.over {
		p.attached.journal.leave()
	}
}

// begin makes a session for what is attached.
func (p *Pager) begin(start time.Time) (*session, error) {
	kickFD, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	se := &session{
		img: p.img, pages: p.table, stats: &p.stats, retries: p.retries(),
		target: p.attached.target, start: start, kickFD: kickFD, lost: &p.lost,
		background: p.opts.Background == Full,
		trace:      p.opts.Trace,
		traceSkew:  p.opts.Trace.At(start),
		more:       make(chan struct{}, p.opts.Workers),
		calm:       make(chan struct{}, p.opts.Workers),
		arrivals:   make(chan *arrival, 16),
		openings:   make(chan *opening, 16),
		restWanted: make(chan struct{}, 1),
		over:       make(chan struct{}),
		offers:     make(chan *offer, offersEach*p.opts.Workers),
	}
	se.lastFault.Store(-demandRecent)
	se.demand = newDemand(se, demandWorkers)
	p.mu.Lock()
	defer p.mu.Unlock()
	se.gathering.Store(p.opts.Gather && !p.gathered && !p.abandoned)
	se.forming.Store(p.opts.Gather && !p.gathered)
	spaces := make([]*space, 0, len(p.attached.fds))
	for _, m := range p.attached.world.spaces {
		if m.fd < 0 {
			se.expected = append(se.expected, newSpace(se.pages, m, nil, nil, nil))
			continue
		}
		u := p.attached.fds[slices.IndexFunc(p.attached.fds, func(u *uffd.FD) bool { return u.Fd() == m.fd })]
		spaces = append(spaces, newSpace(se.pages, m, u, u, nil))
	}
	se.spaces.Store(&spaces)
	p.session = se
	return se, nil
}

// run is the session itself: reader and workers, all of which have ended when
// it returns.
func (p *Pager) run(ctx context.Context, se *session) error {
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, se.kick)
	var wg sync.WaitGroup
	said := false
	se.last = func() {
		if !said && p.opts.Done != nil && p.lost.err() == nil && !p.holdsUnserved() {
			said = true
			p.opts.Done()
		}
	}
	se.released = func(s *space, resident bool) {
		if !resident || !s.attached() || se.gathering.Load() || se.unserved() > 0 {
			return
		}
		p.settleResident(se)
		if len(p.opts.HugePages) > 0 && se.target.PidFD >= 0 {
			wg.Go(func() { se.collapse(outer, p.opts.HugePages) })
		}
	}
	if _, local := p.img.Source().(image.Filer); !local {
		se.wantRest()
	}
	se.gate.alone = runtime.GOMAXPROCS(0) == 1
	wg.Go(func() { se.loadRest(ctx) })
	se.letGo.Store(p.opts.Runs == nil)
	wg.Go(func() {
		if !p.awaitRun(ctx, se) {
			return
		}
		thread.MakeRoom(p.opts.Workers + 1) // and the reader
		if se.background {
			for k := range p.opts.Workers {
				wg.Go(func() { se.fill(ctx, k) })
			}
		}
	})
	r := &reader{worker: *se.newWorker("reader"), ctx: ctx, world: p.attached.world, journal: p.attached.journal, zeros: make([]byte, maxZero), requeue: -int64(requeuePause)}
	r.elders.none = r.world.inherited // a child that was taken over may be one
	r.makeRests()
	r.openAhead()
	close(p.serving)
	r.kicks.Add(1)
	err := r.run()
	r.dropRests(nil)
	r.follower.forget()
	r.close()
	stop()
	cancel()
	se.demand.close()
	wg.Wait()
	return err
}

// firstFaults is how long the processors are left to the process and the
// reader once it runs: what its first instructions touch comes first.
const firstFaults = time.Millisecond

// awaitRun waits until the process has run for a moment, and reports whether it
// does. The reader is awake when it is let go.
func (p *Pager) awaitRun(ctx context.Context, se *session) bool {
	if p.opts.Runs == nil {
		return true
	}
	select {
	case <-p.opts.Runs:
	case <-ctx.Done():
		return false
	}
	se.letGo.Store(true)
	se.kick()
	return sleep(ctx, firstFaults) == nil
}

// Resident is closed when the process that Serve was given is resident. It
// stays open if the process ends before.
func (p *Pager) Resident() <-chan struct{} { return p.resident }

// Lost is closed once a page is given up.
func (p *Pager) Lost() <-chan struct{} { return p.lost.first }

// Stats is what has been done so far.
func (p *Pager) Stats() Stats {
	c := &p.stats
	st := Stats{
		Faults:         c.faults.Load(),
		FaultP50:       c.latency.quantile(0.5),
		FaultP99:       c.latency.quantile(0.99),
		FaultMax:       c.latency.largest(),
		FetchedBytes:   c.fetched.Load(),
		InstalledBytes: c.installed.Load(),
		ZeroBytes:      c.zero.Load(),
		PoisonedBytes:  c.poisoned.Load(),
		Resident:       time.Duration(c.resident.Load()),
		Outage:         c.outage.lasts(),
		Stages:         c.stages.stages(),
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if se := p.session; se != nil && !p.over {
		se.gate.enter()
		defer se.gate.leave()
		for _, s := range *se.spaces.Load() {
			if s.attached() {
				st.MissingBytes += s.missingBytes(se.pages)
			}
		}
	}
	return st
}
