package main

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"lazyrestore": main})
}

// TestScripts runs the command as users do; see testdata/script.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Cmds:          map[string]func(*testscript.TestScript, bool, []string){"status": status},
		Condition:     condition,
	})
}

// condition is userns: there are user namespaces, in which proc can be mounted.
func condition(name string) (bool, error) {
	if name != "userns" {
		return false, fmt.Errorf("no such condition: %s", name)
	}
	err := exec.Command("unshare", "-Urpf", "--mount-proc", "true").Run()
	if err != nil && uffdtest.Required(name) {
		return false, fmt.Errorf("%s requires user namespaces: %w", uffdtest.RequireEnv, err)
	}
	return err == nil, nil
}

// status runs a command and holds its exit code to the first argument:
//
//	status 2 lazyrestore restor
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status CODE COMMAND [ARGUMENT]...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	if err != nil {
		code = exitCodeText(err)
	}
	if code != args[0] {
		ts.Fatalf("status %s, want %s", code, args[0])
	}
}
