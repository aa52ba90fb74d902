package proc

import (
	"bytes"
	"errors"
	"fmt"
)

// Meminfo is the memory of the machine, in bytes.
type Meminfo struct {
	Total, Free, Available uint64
	SwapTotal, SwapFree    uint64
	HugePages, HugeFree    uint64 // of the default size, a number of pages
	HugePageSize           uint64
}

// ParseMeminfo reads /proc/meminfo, which holds no state: lines that are not
// known are skipped.
func ParseMeminfo(b []byte) (Meminfo, error) {
	var m Meminfo
	n := number{what: "meminfo"}
	found := false
	for len(b) > 0 {
		var line []byte
		line, b = cutLine(b)
		key, v, _ := cutKey(line)
		switch string(key) {
		case "MemTotal":
			m.Total = n.kB("MemTotal", v)
		case "MemFree":
			m.Free = n.kB("MemFree", v)
		case "MemAvailable":
			m.Available, found = n.kB("MemAvailable", v), true
		case "SwapTotal":
			m.SwapTotal = n.kB("SwapTotal", v)
		case "SwapFree":
			m.SwapFree = n.kB("SwapFree", v)
		case "HugePages_Total":
			m.HugePages = n.uint("HugePages_Total", v, 10)
		case "HugePages_Free":
			m.HugeFree = n.uint("HugePages_Free", v, 10)
		case "Hugepagesize":
			m.HugePageSize = n.kB("Hugepagesize", v)
		}
	}
	if n.err == nil && !found {
		n.err = errors.New("meminfo: no line MemAvailable")
	}
	return m, n.err
}

// ParsePersonality reads /proc/PID/personality.
func ParsePersonality(b []byte) (uint32, error) {
	n := number{what: "personality"}
	v := n.uint32("personality", bytes.TrimSuffix(b, []byte("\n")), 16)
	return v, n.err
}

// parseSigned reads a file that holds one decimal number.
func parseSigned(b []byte) (int64, error) {
	line, _ := cutLine(b)
	v, ok := parseInt(trim(line))
	if !ok {
		return 0, fmt.Errorf("%q is not a number", line)
	}
	return v, nil
}

// parseUnsigned reads a file that holds one decimal number, not negative.
func parseHex(b []byte) (uint64, error) {
	line, _ := cutLine(b)
	v, ok := parseUint(trim(line), 16)
	if !ok {
		return 0, fmt.Errorf("%q is not a hexadecimal number", line)
	}
	return v, nil
}

func parseUnsigned(b []byte) (uint64, error) {
	line, _ := cutLine(b)
	v, ok := parseUint(trim(line), 10)
	if !ok {
		return 0, fmt.Errorf("%q is not a number", line)
	}
	return v, nil
}
