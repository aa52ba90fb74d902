package pager

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

const (
	firstBackoff = 5 * time.Millisecond
	lastBackoff  = time.Second
)

// retries are how a read that fails is done again.
type retries struct {
	retry  time.Duration
	onLost OnLost
	outage *outage
	log    *slog.Logger
}

func (p *Pager) retries() retries {
	return retries{p.opts.Retry, p.opts.OnLost, &p.stats.outage, p.opts.Logger}
}

// patiently has read done again and again, with growing pauses, until that is
// hopeless: there is damage, and the source has no other bytes, or any other error for
// as long as Options.Retry where Options.OnLost is not to wait. The error is then
// the last one; it is the context's if that ended first.
//
// Damage of which a source may have other bytes is not counted: how many places it has
// to read from only the source knows, and once all have given damaged ones it says so
// itself, by another error.
func (rt *retries) patiently(ctx context.Context, read func() error) error {
	deadline := time.Now().Add(rt.retry)
	pause := firstBackoff
	for try := 1; ; try++ {
		err := read()
		if err == nil {
			rt.outage.over(rt.log)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rt.log.Debug("read failed", "try", try, "error", err)
		switch {
		case mayMend(err):
		case errors.Is(err, image.ErrDamaged):
			return err
		case rt.onLost != Wait && time.Now().Add(pause).After(deadline):
			return err
		default:
			rt.outage.failed(rt.log, err)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, lastBackoff)
	}
}

// mayMend reports whether err is damage of which the source may have other bytes.
func mayMend(err error) bool {
	var d *image.DamagedError
	return errors.As(err, &d) && d.Again
}

// sleep waits for d, or until ctx is done and then gives its error.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
