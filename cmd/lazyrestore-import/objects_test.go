package main

import (
	"testing"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli/clitest"
)

// Each field of what is printed as JSON has a row in help and manual, and each row is of a field.
func TestObjectsAreDocumented(t *testing.T) {
	clitest.Documented(t, object(), result{})
}
