package verb

import (
	"os/signal"
	"syscall"
	"testing"
)

// A command that was started to ignore hang-ups goes on to, and still ends when it is told to.
func TestIgnoredSignalsStayIgnored(t *testing.T) {
	was := signal.Ignored(syscall.SIGHUP)
	signal.Ignore(syscall.SIGHUP)
	defer func() {
		if !was {
			signal.Reset(syscall.SIGHUP)
		}
	}()
	ctx, stop := UntilEnded()
	defer stop()
	if !signal.Ignored(syscall.SIGHUP) {
		t.Error("SIGHUP is ignored no more")
	}
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
}
