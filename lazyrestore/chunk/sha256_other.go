//go:build !amd64

package chunk

func sha256Two(_, _ *lane, _, _ *byte, _ int) { panic("chunk: no instructions for SHA") }

func hasSHA() bool { return false }
