//go:build !amd64

package main

import (
	"os"
	"os/signal"
)

// listen has signals come over c from now on, up to stop.
func listen(c chan<- os.Signal, signals []os.Signal) (stop func(), err error) {
	signal.Notify(c, signals...)
	return func() { signal.Stop(c) }, nil
}
