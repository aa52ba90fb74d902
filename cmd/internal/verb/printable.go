package verb

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Printable is text with all escaped that a terminal would act upon, but for tabs and ends
// of lines. Paths and names come from images, servers and processes, whoever made them,
// and who only looks at one must not have his terminal told what to do.
func Printable(text string) string {
	i := unprintable(text)
	if i == len(text) {
		return text
	}
	var b strings.Builder
	for ; i < len(text); i = unprintable(text) {
		b.WriteString(text[:i])
		_, n := utf8.DecodeRuneInString(text[i:])
		for _, c := range []byte(text[i : i+n]) {
			fmt.Fprintf(&b, `\x%02x`, c)
		}
		text = text[i+n:]
	}
	b.WriteString(text)
	return b.String()
}

// unprintable is where the first character is that is to be escaped.
func unprintable(text string) int {
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRuneInString(text[i:])
		if r == utf8.RuneError && n == 1 || r != '\n' && r != '\t' && !strconv.IsPrint(r) {
			return i
		}
		i += n
	}
	return len(text)
}

// line is text in one line: what follows a line's end in a path must not look like a
// message of ours.
func line(text string) string { return strings.ReplaceAll(text, "\n", `\n`) }
