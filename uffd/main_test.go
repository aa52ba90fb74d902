package uffd_test

import (
	"testing"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

func TestMain(m *testing.M) { uffdtest.Main(m) }
