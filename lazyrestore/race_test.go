//go:build race

package lazyrestore_test

func init() { raceEnabled = true }
