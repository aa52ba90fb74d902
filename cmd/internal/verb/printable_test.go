package verb

import (
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"":                             "",
		"plain, 45 µs\t1\n":            "plain, 45 µs\t1\n",
		"\x1b]0;title\x07":             `\x1b]0;title\x07`,
		"a\rb\x00c\x7f":                `a\x0db\x00c\x7f`,
		"c1 \u009b31m":                 `c1 \xc2\x9b31m`,
		"reversed \u202etxt.exe":       `reversed \xe2\x80\xaetxt.exe`,
		"no UTF-8 \xff\xfe, \ufffd ok": `no UTF-8 \xff\xfe, ` + "\ufffd ok",
		"日本語 é":                        "日本語 é",
	} {
		if got := Printable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// What an image, a server or a process is called does nothing to the terminal, and does not look like
// a message of ours.
func TestWordsOfOthers(t *testing.T) {
	const hostile = "\x1b[2J\nlazyrestore: all is well"
	var stdout, stderr strings.Builder
	c := &Command{Stdout: &stdout, Stderr: &stderr}
	c.Print(hostile)
	c.Note(hostile)
	if said := stdout.String() + stderr.String(); strings.Contains(said, "\x1b") {
		t.Errorf("%q", said)
	}
	stderr.Reset()
	c.Fail("restore", &lazyrestore.RefusedError{Reasons: []lazyrestore.Reason{{What: hostile, Why: hostile, Help: hostile}}})
	if said := stderr.String(); strings.Contains(said, "\x1b") || strings.Count(said, "\n") != 3 {
		t.Errorf("%q", said)
	}
}
