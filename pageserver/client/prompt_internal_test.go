package client

import (
	"testing"
	"time"
)

// PromptWithin has replies of ReadSoon waited for so long, for the tests of the client
// from outside: how soon they come is the machine's matter.
func (c *Client) PromptWithin(d time.Duration) {
	c.prompt.busy.Lock()
	defer c.prompt.busy.Unlock()
	c.prompt.within = d
}

// Who has slept for replies looks again, soon where they are quick and seldom
// where they are not.
func TestPromptLooksAgain(t *testing.T) {
	replies := func(x *prompt, n int, d time.Duration) (looked int) {
		for range n {
			if x.looks() {
				looked++
			}
			x.took(d)
		}
		return looked
	}
	const n = 10 * lookAgain
	x := new(prompt)
	if looked := replies(x, n, lookTime/2); looked != n {
		t.Errorf("%d of %d quick replies were looked for", looked, n)
	}
	if looked := replies(x, n, 2*lookTime); looked == 0 || looked > n/lookAgain {
		t.Errorf("%d of %d slow replies were looked for", looked, n)
	}
	// Replies are as slow as before to who sleeps, and quick to who looks.
	for i := 0; !x.looks(); i++ {
		if i == lookAgain {
			t.Fatalf("%d replies, and nobody looks", i)
		}
		x.took(2 * lookTime)
	}
	x.took(lookTime / 2)
	if looked := replies(x, n, lookTime/2); looked != n {
		t.Errorf("%d of %d replies that are quick again were looked for", looked, n)
	}
}
