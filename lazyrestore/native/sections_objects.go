package native

import "slices"

// The sections of memory and descriptors.

func (c *coder) locks(st *State) {
	list(c, &st.Locks, func(l *Lock) { num(c, &l.Open); num(c, &l.Kind); c.flag(&l.Write); c.u64(&l.Start); c.u64(&l.Len) })
}

func (c *coder) timerFDs(st *State) {
	list(c, &st.TimerFDs, func(t *Timer) {
		num(c, &t.Open)
		num(c, &t.Clock)
		num(c, &t.Wall)
		c.u64(&t.Flags)
		c.u64(&t.Interval)
		c.u64(&t.Value)
	})
}

func (c *coder) fileWatches(st *State) {
	list(c, &st.FileWatches, func(w *FileWatch) { num(c, &w.Open); num(c, &w.WD); num(c, &w.Mask); c.str(&w.Path) })
}

func (c *coder) displaced(st *State) {
	list(c, &st.Displaced, func(w *Displaced) { num(c, &w.Open); num(c, &w.Index); num(c, &w.Target) })
}

// more is one entry for each shared object, where one of them has more.
func (c *coder) more(st *State) {
	all := make([]More, len(st.Shared))
	for i := range st.Shared {
		all[i] = st.Shared[i].More
	}
	if !c.decodes && !slices.ContainsFunc(all, func(m More) bool { return m != More{} }) {
		return
	}
	list(c, &all, func(m *More) {
		c.u64(&m.Seals)
		num(c, &m.Mode)
		num(c, &m.UID)
		num(c, &m.GID)
		c.str(&m.Dir)
		c.str(&m.Path)
		num(c, &m.MTime)
		c.flag(&m.Mapped)
	})
	if len(all) != len(st.Shared) {
		c.fail("%d entries for %d shared objects", len(all), len(st.Shared))
		return
	}
	for i := range all {
		st.Shared[i].More = all[i]
	}
}

func (c *coder) policies(st *State) {
	list(c, &st.Policies, func(p *RangePolicy) { c.span(&p.Range); c.u64(&p.Mode); nums(c, &p.Nodes) })
}

func (c *coder) locked(st *State) {
	list(c, &st.Locked, func(l *LockedRange) { c.span(&l.Range); c.flag(&l.OnFault) })
	c.u64(&st.LockFuture)
}

func (c *coder) sockets(st *State) {
	list(c, &st.Sockets, func(s *Socket) {
		num(c, &s.Open)
		for _, v := range []*int{&s.Family, &s.Type, &s.Protocol} {
			num(c, v)
		}
		c.bytes(&s.Name)
		c.flag(&s.Listen)
		c.u64(&s.Backlog)
		c.flag(&s.Pair)
		num(c, &s.Peer)
		c.u64(&s.Shutdown)
		list(c, &s.Options, func(o *SocketOption) { num(c, &o.Level); num(c, &o.Name); c.bytes(&o.Value) })
		list(c, &s.Queue, c.bytes)
		num(c, &s.Mode)
		num(c, &s.UID)
		num(c, &s.GID)
	})
}
