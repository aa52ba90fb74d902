package native

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
