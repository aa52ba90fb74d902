package wire

import "strings"

// ValidName reports whether an image may have that name: it is one within a directory, none
// of those under which images are written, which begin with a dot, and can stand in an address.
func ValidName(name string) bool {
	return name != "" && len(name) <= MaxName && name[0] != '.' && !strings.Contains(name, "/") && !HasBlanks(name)
}

// HasBlanks reports whether there are spaces or control characters in s: no address has any.
func HasBlanks(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f })
}
