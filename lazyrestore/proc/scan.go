package proc

import (
	"bytes"
	"fmt"
)

// cutLine is b's first line, without its newline, and what follows it.
func cutLine(b []byte) (line, rest []byte) {
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		return b[:i], b[i+1:]
	}
	return b, nil
}

// cutField is b's first word, and what follows it. Words are separated by
// blanks and tabs; at the end of b the word is empty.
func cutField(b []byte) (field, rest []byte) {
	i := 0
	for i < len(b) && (b[i] == ' ' || b[i] == '\t') {
		i++
	}
	j := i
	for j < len(b) && b[j] != ' ' && b[j] != '\t' {
		j++
	}
	return b[i:j], b[j:]
}

// cutKey splits a line "key: value"; the value has no blanks around it.
func cutKey(line []byte) (key, value []byte, ok bool) {
	i := bytes.IndexByte(line, ':')
	if i < 0 {
		return line, nil, false
	}
	return line[:i], trim(line[i+1:]), true
}

// trim takes blanks and tabs off both ends of b.
func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// parseUint reads all of b as a number of the base (8, 10 or 16) without sign
// or prefix. It reports false where a digit is wrong, there is none, or the
// number does not fit.
func parseUint(b []byte, base uint64) (uint64, bool) {
	if len(b) == 0 {
		return 0, false
	}
	var n uint64
	limit := ^uint64(0) / base
	for _, c := range b {
		var d uint64
		switch {
		case '0' <= c && c <= '9':
			d = uint64(c - '0')
		case 'a' <= c && c <= 'f':
			d = uint64(c-'a') + 10
		default:
			return 0, false
		}
		if d >= base || n > limit || n*base+d < n*base {
			return 0, false
		}
		n = n*base + d
	}
	return n, true
}

// parseInt reads all of b as a decimal number that may be negative.
func parseInt(b []byte) (int64, bool) {
	neg := len(b) > 0 && b[0] == '-'
	if neg {
		b = b[1:]
	}
	n, ok := parseUint(b, 10)
	switch {
	case !ok:
		return 0, false
	case neg && n <= 1<<63:
		return -int64(n), true
	case !neg && n < 1<<63:
		return int64(n), true
	}
	return 0, false
}

// number gathers the first error of many conversions, so that a parser reads
// as a table of its fields.
type number struct {
	what string // the file, for messages
	err  error
}

func (n *number) fail(name string, b []byte) {
	if n.err == nil {
		n.err = fmt.Errorf("%s: %s: %q is not a number that fits", n.what, name, b)
	}
}

func (n *number) uint(name string, b []byte, base uint64) uint64 {
	v, ok := parseUint(b, base)
	if !ok {
		n.fail(name, b)
	}
	return v
}

func (n *number) uint32(name string, b []byte, base uint64) uint32 {
	v, ok := parseUint(b, base)
	if !ok || v > 1<<32-1 {
		n.fail(name, b)
		return 0
	}
	return uint32(v)
}

func (n *number) int(name string, b []byte) int {
	v, ok := parseInt(b)
	if !ok || int64(int32(v)) != v {
		n.fail(name, b)
		return 0
	}
	return int(v)
}

// ints reads a list of ids, separated by blanks; it may be empty.
func (n *number) ints(name string, b []byte) []int {
	var list []int
	for {
		f, rest := cutField(b)
		if len(f) == 0 {
			return list
		}
		list, b = append(list, n.int(name, f)), rest
	}
}

// kB reads "123 kB" as bytes.
func (n *number) kB(name string, b []byte) uint64 {
	f, rest := cutField(b)
	v, ok := parseUint(f, 10)
	if unit, _ := cutField(rest); !ok || v > 1<<53 || string(unit) != "kB" {
		n.fail(name, b)
		return 0
	}
	return v << 10
}
