package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"
)

// stampSlots and stampPause are those of c/stamp.h and c/stamp.c, which say
// what this is for.
const (
	stampSlots = 8192
	stampPause = 50 * time.Microsecond
)

// stamps writes clock readings to a ring in a file, for as long as the program
// runs.
func stamps(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := f.Truncate(stampSlots * 8); err != nil {
		return err
	}
	go func() {
		slot := make([]byte, 8)
		for i := int64(0); ; i++ {
			binary.LittleEndian.PutUint64(slot, uint64(time.Now().UnixNano()))
			if _, err := f.WriteAt(slot, i%stampSlots*8); err != nil {
				fmt.Fprintln(os.Stderr, "gcload:", err)
				os.Exit(1)
			}
			time.Sleep(stampPause)
		}
	}()
	return nil
}
