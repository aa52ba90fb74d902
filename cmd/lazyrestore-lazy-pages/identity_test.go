package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/lazypages"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// abandoned is a tree of one task whose daemon was killed. change changes what the state says, in its file.
func abandoned(t *testing.T, change func(state, keeper map[string]any)) *tree {
	t.Helper()
	tr := plant(t, 1)
	d := start(t, tr.images, "--background", "none")
	tr.connect(t)
	tr.send(t, 0)
	tr.awaitFirst(t)
	d.kill(t)
	path := filepath.Join(tr.images, lazypages.StateName)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	state := map[string]any{}
	if err := json.Unmarshal(b, &state); err != nil {
		t.Fatal(err)
	}
	change(state, state["keepers"].([]any)[0].(map[string]any))
	if b, err = json.Marshal(state); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return tr
}

// runs runs a daemon that is to end at once with exit status 1, and say why.
func (tr *tree) runs(t *testing.T, want string, args ...string) {
	t.Helper()
	var out bytes.Buffer
	code := run(append([]string{"x", "--no-default-config", "-D", tr.images}, args...), io.Discard, &out)
	if code != 1 || !strings.Contains(out.String(), want) {
		t.Errorf("%v: exit status %d: %s; want %q", args, code, out.String(), want)
	}
}

// What is left of another boot, or by a keeper whose id another process has by now, which may be a keeper too, is nothing to
// go on from, and in nobody's way.
func TestStateOfAnotherTime(t *testing.T) {
	for name, c := range map[string]struct {
		change func(state, keeper map[string]any)
		want   string
	}{
		"another boot":    {func(state, _ map[string]any) { state["boot"] = "0" }, "booted since"},
		"another process": {func(_, keeper map[string]any) { keeper["start"] = keeper["start"].(float64) - 1 }, "is another one"},
	} {
		t.Run(name, func(t *testing.T) {
			tr := abandoned(t, c.change)
			tr.runs(t, c.want, "--resume")
			start(t, tr.images).kill(t)
		})
	}
}

// Of what was left in another pid namespace the ids say nothing. As long as the keeper lives there no other daemon begins, and
// --resume says where it is to be; once it has ended it is in nobody's way.
func TestStateOfAnotherPIDNamespace(t *testing.T) {
	tr := abandoned(t, func(state, _ map[string]any) { state["pid_namespace"] = state["pid_namespace"].(float64) + 1 })
	const want = "wait for one that resumes, in the pid namespace of that one"
	tr.runs(t, want)
	tr.runs(t, want, "--resume")
	tr.tasks[0].Kill()
	for end := time.Now().Add(uffdtest.Timeout); ; time.Sleep(10 * time.Millisecond) {
		var out bytes.Buffer
		run([]string{"x", "--no-default-config", "-D", tr.images, "--resume"}, io.Discard, &out)
		if strings.Contains(out.String(), "nobody is left there") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("--resume: %s", out.String())
		}
	}
	start(t, tr.images).kill(t)
}
