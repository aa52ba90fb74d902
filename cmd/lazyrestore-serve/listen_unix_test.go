package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Of servers that come at once to a socket that a killed one has left, one has it.
func TestLeftSocketIsTakenOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	for range 50 {
		left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		left.SetUnlinkOnClose(false)
		left.Close()
		var got [4]net.Listener
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for i := range got {
			wg.Go(func() {
				<-begin
				ln, err := listenUnix(path)
				if err != nil && !errors.Is(err, errTaken) {
					t.Error(err)
				}
				got[i] = ln
			})
		}
		close(begin)
		wg.Wait()
		have := 0
		for _, ln := range got {
			if ln == nil {
				continue
			}
			have++
			nc, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			nc.Close()
			if err := ln.Close(); err != nil {
				t.Error(err)
			}
		}
		if have != 1 {
			t.Fatalf("%d have it", have)
		}
		if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 0 {
			t.Fatalf("left behind: %v, %v", files, err)
		}
	}
}
