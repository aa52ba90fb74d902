package native

import (
	"fmt"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

// Behind its fixed part process.bin has sections, of state that few processes
// have: a number, the length in bytes, and fields as in the fixed part. They
// ascend by number; one that would hold nothing but zeros is left out, so that
// whoever has no such state pays nothing for it. A number once used never
// changes its meaning: further fields are a further section. A section that
// a program does not know makes the image too new for it, since what the
// section says would be lost.

// A section names the code of one section, which runs in either direction.
type section struct {
	id   uint64
	code func(*coder, *State)
}

// sections are all that there are, in ascending order. Numbers below 64 are of
// memory and descriptors, those from 64 on of threads and the process.
var sections = [...]section{
	{1, (*coder).locks},
	{2, (*coder).timerFDs},
	{3, (*coder).fileWatches},
	{4, (*coder).displaced},
	{5, (*coder).more},
	{6, (*coder).policies},
	{7, (*coder).locked},
	{8, (*coder).sockets},
	{64, (*coder).session},
	{65, (*coder).schedulings},
	{66, (*coder).switches},
	{67, (*coder).posixTimers},
	{68, (*coder).clocks},
	{69, (*coder).process},
	{70, (*coder).sleeps},
	{71, (*coder).modes},
}

// appendSections encodes the sections that say something.
func (c *coder) appendSections(st *State) {
	for i := range sections {
		part := &coder{}
		sections[i].code(part, st)
		if !allZero(part.buf) {
			id := sections[i].id
			c.u64(&id)
			c.bytes(&part.buf)
		}
	}
}

func allZero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}

// takeSections decodes the sections up to the end.
func (c *coder) takeSections(st *State) {
	last := uint64(0)
	for c.err == nil && len(c.buf) > 0 {
		var id uint64
		var b []byte
		c.u64(&id)
		c.bytes(&b)
		if c.err != nil {
			return
		}
		if id <= last {
			c.fail("section %d follows section %d", id, last)
			return
		}
		last = id
		end := c.end - len(c.buf)
		if at, err := takeSection(st, id, b, end); err != nil {
			c.err, c.at, c.buf = err, at, nil
		}
	}
}

// takeSection decodes a section that ends at end, and says where what it cannot decode is.
func takeSection(st *State, id uint64, b []byte, end int) (at int, err error) {
	for i := range sections {
		if sections[i].id != id {
			continue
		}
		part := &coder{buf: b, end: end, decodes: true}
		sections[i].code(part, st)
		if part.err == nil && len(part.buf) != 0 {
			part.fail("%d bytes too many", len(part.buf))
		}
		if part.err != nil {
			return part.at, fmt.Errorf("section %d: %w", id, part.err)
		}
		return 0, nil
	}
	return end - len(b), fmt.Errorf("%s has section %d, which this version does not know: %w", image.ProcessObject, id, image.ErrVersion)
}
