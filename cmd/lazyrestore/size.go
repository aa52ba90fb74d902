package main

import (
	"strconv"
	"strings"
	"time"
)

// sizeText is a number of bytes for people: "512 B", "1.5 KiB", "670 MiB".
func sizeText(n uint64) string {
	if n < 1024 {
		return strconv.FormatUint(n, 10) + " B"
	}
	value, unit := float64(n)/1024, 0
	for value >= 1023.5 && unit < len("KMGTPE")-1 {
		value /= 1024
		unit++
	}
	decimals := 0
	if value < 9.95 {
		decimals = 1
	}
	text := strconv.FormatFloat(value, 'f', decimals, 64)
	return strings.TrimSuffix(text, ".0") + " " + "KMGTPE"[unit:unit+1] + "iB"
}

// timeText is a duration for people: "85 µs", "14 ms", "2.4 s", "3m12s".
func timeText(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return strconv.FormatInt(d.Microseconds(), 10) + " µs"
	case d < 10*time.Millisecond:
		return strconv.FormatFloat(d.Seconds()*1e3, 'f', 1, 64) + " ms"
	case d < time.Second:
		return strconv.FormatInt(d.Milliseconds(), 10) + " ms"
	case d < time.Minute:
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s"
	}
	return d.Round(time.Second).String()
}

// milliseconds makes a duration of a figure in a result.
func milliseconds(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }
