package main

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Signals come while threads are busy with Go's own memory, each kind as what
// it is, and none after stop.
func TestListen(t *testing.T) {
	c := make(chan os.Signal, 64)
	kinds := []os.Signal{unix.SIGUSR1, unix.SIGWINCH, unix.SIGTERM, unix.SIGHUP}
	stop, err := listen(c, kinds)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		var last []byte
		for {
			select {
			case <-quit:
				_ = last
				return
			default:
				last = make([]byte, 1<<16)
			}
		}
	}()
	for i := range 400 {
		want := kinds[i%len(kinds)].(unix.Signal)
		if err := unix.Kill(unix.Getpid(), want); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-c:
			if got != want {
				t.Fatalf("signal %d came as %v, want %v", i, got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("signal %d, %v, does not come", i, want)
		}
	}
	close(quit)
	<-ended
	stop()
	if err := unix.Kill(unix.Getpid(), unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if len(c) > 0 {
		t.Errorf("%v came after stop", <-c)
	}
}
