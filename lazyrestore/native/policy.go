package native

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// A RangePolicy is the NUMA memory policy of a mapping, see mbind(2). It is set
// before the memory comes: a page is made where the policy of its mapping says,
// whoever makes it.
type RangePolicy struct {
	page.Range
	MemPolicy
}

const (
	policyOfAddress = 2   // MPOL_F_ADDR
	policyBatch     = 200 // mappings asked about in one table
)

// policies asks for the memory policies of all mappings: first which have one,
// then for its nodes.
func (q *questions) policies() error {
	st := q.f.c.st
	var special []*VMA
	for i := 0; i < len(st.VMAs); i += policyBatch {
		part := st.VMAs[i:min(i+policyBatch, len(st.VMAs))]
		err := q.ask(q.f.pid, 16*policyBatch, func() (list []asked) {
			for i := range part {
				at := q.room(8)
				get := call(unix.SYS_GET_MEMPOLICY|proc.MayFail, q.at+at, 0, 0, uint64(part[i].Start), policyOfAddress)
				list = append(list, asked{get, func(ret int64) {
					if ret == 0 && q.word(at)&0xffffffff != 0 {
						special = append(special, &part[i])
					}
				}})
			}
			return list
		})
		if err != nil {
			return err
		}
	}
	for _, v := range special {
		err := q.ask(q.f.pid, 16+nodeBytes, func() []asked {
			mode, nodes := q.room(8), q.room(nodeBytes)
			get := call(unix.SYS_GET_MEMPOLICY, q.at+mode, q.at+nodes, maxNodes, uint64(v.Start), policyOfAddress)
			return []asked{{get, func(int64) {
				st.Policies = append(st.Policies, RangePolicy{v.Range, q.policy(mode, nodes)})
			}}}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// policy reads an answer of get_mempolicy(2).
func (q *questions) policy(mode, nodes uint64) MemPolicy {
	p := MemPolicy{Mode: q.word(mode) & 0xffffffff}
	for i := range maxNodes / 64 {
		if w := q.word(nodes + 8*uint64(i)); w != 0 {
			p.Nodes = append(p.Nodes, make([]uint64, i+1-len(p.Nodes))...)
			p.Nodes[i] = w
		}
	}
	return p
}

// policies plans the memory policies of mappings.
func (b *builder) policies(t *table) {
	for i := range b.st.Policies {
		p := &b.st.Policies[i]
		nodes, n := uint64(0), uint64(0)
		if len(p.Nodes) > 0 {
			nodes, n = b.prog.words(p.Nodes...), 64*uint64(len(p.Nodes))+1
		}
		t.call("mbind", unix.SYS_MBIND, uint64(p.Start), p.Len(), p.Mode, nodes, n, 0).by(p.Start).
			mayFail().warns("mapping " + p.String() + ": this machine lacks the NUMA nodes of its memory policy")
	}
}

func (st *State) validPolicies() error {
	for i := range st.Policies {
		p := &st.Policies[i]
		if len(p.Nodes) > maxNodes/64 || !st.isMapping(p.Range) {
			return fmt.Errorf("a memory policy of %v", p.Range)
		}
	}
	return nil
}

// isMapping reports whether r is one of the mappings.
func (st *State) isMapping(r page.Range) bool {
	i, ok := slices.BinarySearchFunc(st.VMAs, r.Start, func(v VMA, at page.Addr) int {
		switch {
		case v.Start < at:
			return -1
		case v.Start > at:
			return 1
		}
		return 0
	})
	return ok && st.VMAs[i].Range == r
}
