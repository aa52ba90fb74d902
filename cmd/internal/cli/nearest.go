package cli

import "strings"

// Nearest is the word that a user may have meant: one that s begins, or one
// that few edits make of it; "" where none is near.
func Nearest(s string, words []string) string {
	best, bound := "", 1+len(s)/3
	for _, w := range words {
		if len(s) > 1 && strings.HasPrefix(w, s) {
			return w
		}
		if d := edits(s, w); d <= bound {
			best, bound = w, d-1
		}
	}
	return best
}

// edits counts the insertions, deletions, replacements and swaps of neighbours
// that make b of a.
func edits(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
