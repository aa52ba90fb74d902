package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
)

// An entry is a word of the command line: one of ours, or an executable beside us.
type entry struct {
	name  string
	short string // of an external one
	build func(*command) *cli.Command
}

// verbs lists all verbs, in the order in which help shows them. It is a
// function so that nothing is built before it is needed.
func verbs() []entry {
	return []entry{
		{name: "checkpoint", build: (*command).checkpoint},
		{name: "restore", build: (*command).restore},
		{name: "inspect", build: (*command).inspect},
		{name: "verify", build: (*command).verify},
		{name: "check", build: (*command).check},
		{name: "version", build: (*command).version},
		{name: "completion", build: (*command).completion},
		{name: "serve", short: "serve images over the network"},
		{name: "bench", short: "measure restores on this machine"},
		{name: "lazy-pages", short: "serve pages to criu restore --lazy-pages"},
		{name: "page-server", short: "receive pages from criu dump --page-server"},
		{name: "import", short: "make an image of CRIU's images"},
		{name: "export", short: "make CRIU's images of an image"},
	}
}

// lookup finds a verb; build is nil for those that are executables of their own.
func lookup(name string) (build func(*command) *cli.Command, external bool) {
	for _, v := range verbs() {
		if v.name == name {
			return v.build, v.build == nil
		}
	}
	return nil, false
}

// foreign are words of other tools for what we do.
func foreign() map[string]string {
	return map[string]string{
		"dump":   "checkpoint",
		"save":   "checkpoint",
		"ckpt":   "checkpoint",
		"resume": "restore",
		"start":  "restore",
		"show":   "inspect",
		"info":   "inspect",
		"doctor": "check",
		"fsck":   "verify",
	}
}

func unknownVerb(name string) error {
	e := &cli.UsageError{Problem: "there is no verb " + strings.TrimSpace(name), Hint: "see lazyrestore --help"}
	if strings.HasPrefix(name, "-") {
		e.Problem = "a verb comes before the flags"
		e.Hint = "usage: lazyrestore VERB [FLAG]... [ARGUMENT]; see lazyrestore --help"
		return e
	}
	if as := foreign()[name]; as != "" {
		e.Hint = "lazyrestore calls it " + as
		return e
	}
	var names []string
	for _, v := range verbs() {
		names = append(names, v.name)
	}
	if near := cli.Nearest(name, names); near != "" {
		e.Hint = "did you mean " + near + "?"
	}
	return e
}

// beside is the executable of an external verb.
func beside(self, name string) string {
	return filepath.Join(filepath.Dir(self), "lazyrestore-"+name)
}

// external replaces us by lazyrestore-VERB from beside us. It returns only if
// it cannot.
func (c *command) external(name string, args []string) int {
	self, err := os.Executable()
	if err != nil {
		return c.Fail(name, err)
	}
	path := beside(self, name)
	err = syscall.Exec(path, append([]string{path}, args...), os.Environ())
	if errors.Is(err, fs.ErrNotExist) {
		err = &cli.UsageError{
			Problem: "the verb " + name + " is an executable of its own, " + path + ", and it is not installed",
			Hint:    "install lazyrestore-" + name + " beside lazyrestore",
		}
	}
	return c.Fail(name, err)
}

// overview is the help text without a verb.
func overview() string {
	var b strings.Builder
	b.WriteString("usage: lazyrestore VERB [FLAG]... [ARGUMENT]...\n\n" +
		"Checkpoint a running process and restore it lazily: it runs within\n" +
		"milliseconds, and its memory streams in as it is touched.\n\nVerbs:\n")
	for _, v := range verbs() {
		short := v.short
		if v.build != nil {
			short = v.build(new(command)).Short
		}
		b.WriteString("  " + v.name + strings.Repeat(" ", max(1, 14-len(v.name))) + short + "\n")
	}
	b.WriteString("\nlazyrestore VERB --help tells more. Exit codes: " + verb.Summary + ".\n")
	return b.String()
}

// help prints the help text of a verb, or the overview.
func (c *command) help(args []string) int {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		c.Print(overview())
		return c.Fail("help", c.Unwritten())
	}
	build, external := lookup(args[0])
	switch {
	case external:
		return c.external(args[0], []string{"--help"})
	case build == nil:
		return c.Fail("help", unknownVerb(args[0]))
	}
	c.Print(build(c).Help())
	return c.Fail("help", c.Unwritten())
}
