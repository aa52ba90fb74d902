package proc

import (
	"os"
	"testing"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// roles are what this test binary does instead of testing when it is started
// by one of its own tests.
var roles = map[string]func(){}

// roleEnv names the role.
const roleEnv = "LAZYRESTORE_PROC_TEST_ROLE"

func TestMain(m *testing.M) {
	if role, ok := roles[os.Getenv(roleEnv)]; ok {
		role()
		os.Exit(0)
	}
	uffdtest.Main(m)
}
