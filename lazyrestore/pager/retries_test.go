package pager

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image/imagetest"
	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// copies is a source that has several copies of the pages, the next of which it reads once
// it was told of damage. After the last it fails once, and begins with the first.
type copies struct {
	image.Source
	bad    int64 // all but the last are damaged; all, if there is no such one
	n      int64
	told   atomic.Int64
	failed atomic.Int64
}

var errNoneWhole = errors.New("no copy is whole")

func (c *copies) ReadRange(ctx context.Context, object string, p []byte, off int64, lane image.Lane) error {
	told := c.told.Load()
	if told >= c.n*(c.failed.Load()+1) {
		c.failed.Add(1)
		return errNoneWhole
	}
	err := c.Source.ReadRange(ctx, object, p, off, lane)
	if object == "pages.lz4" && told%c.n < c.bad {
		p[len(p)/2] ^= 4
	}
	return err
}

func (c *copies) Reject(string, int64, int64, error) (again bool) {
	c.told.Add(1)
	return true
}

// A damaged frame is read of all places that a source has before it is given up, however many these are.
func TestDamagedFrameOfManyCopies(t *testing.T) {
	for _, tt := range []struct {
		name   string
		n, bad int64
		onLost OnLost
		told   int64 // at least
		want   error
	}{
		{"the fourth is whole", 4, 3, Poison, 3, nil},
		{"the tenth is whole", 10, 9, Kill, 9, nil},
		{"none is whole", 4, 4, Poison, 8, errNoneWhole},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &copies{bad: tt.bad, n: tt.n}
			se := fakeSession(t, 4, func(m *imagetest.Mem) image.Source {
				c.Source = m
				return c
			})
			se.onLost = tt.onLost
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				plain, err := se.newWorker("test").fetch(t.Context(), 0, image.Demand)
				took := time.Since(start)
				if !errors.Is(err, tt.want) || err == nil && plain[3*page.Size] != 4 {
					t.Errorf("fetch = %v after %v, or other bytes", err, took)
				}
				if errors.Is(err, image.ErrDamaged) || tt.want != nil && took < se.retry-lastBackoff {
					t.Errorf("it was given up after %v: %v", took, err)
				}
				if c.told.Load() < tt.told {
					t.Errorf("the source was told %d times", c.told.Load())
				}
			})
		})
	}
}

// Damage of which there are no other bytes is hopeless, whatever is to become of what is lost.
func TestDamagedForGood(t *testing.T) {
	se := fakeSession(t, 4, func(m *imagetest.Mem) image.Source {
		b := bytes.Clone(m.Get("pages.lz4"))
		b[len(b)/2] ^= 4
		m.Set("pages.lz4", b)
		return m
	})
	se.onLost = Wait
	if _, err := se.newWorker("test").fetch(t.Context(), 0, image.Demand); !errors.Is(err, image.ErrDamaged) {
		t.Errorf("fetch = %v", err)
	}
}
