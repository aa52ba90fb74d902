package main

import (
	"fmt"
	"strings"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

// The oldest kernel that can do all that is required: with
// PTRACE_GET_RSEQ_CONFIGURATION (5.13) a thread's restartable sequences can be
// recorded, without which a program of glibc 2.35 or later cannot be brought
// back. The others came before: userfaultfd's events with 4.11, pidfd_open
// with 5.3, clone3's set_tid with 5.5, pidfd_getfd with 5.6.
const (
	oldestMajor = 5
	oldestMinor = 13
)

// A facility is one thing that we use and a machine may lack.
type facility struct {
	Name       string `json:"name"`
	OK         bool   `json:"ok"`
	Checkpoint bool   `json:"checkpoint"` // a checkpoint cannot do without it
	Restore    bool   `json:"restore"`    // a restore cannot do without it
	For        string `json:"for"`        // what it is needed for, or what is lost without it
	Found      string `json:"found,omitempty"`
	Help       string `json:"help,omitempty"`
}

func (f *facility) optional() bool { return !f.Checkpoint && !f.Restore }

// checkReport is what check --json prints.
type checkReport struct {
	OK           bool       `json:"ok"`
	Checkpoint   bool       `json:"checkpoint"` // it can work here
	Restore      bool       `json:"restore"`
	Kernel       string     `json:"kernel"`
	OldestKernel string     `json:"oldest_kernel"`
	Facilities   []facility `json:"facilities"`
	Limits       []limit    `json:"limits"`
}

// A limit is a number of the machine or the session that large processes meet.
type limit struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	For   string `json:"for"`
}

func (c *command) check() *cli.Command {
	return &cli.Command{
		Name: "check", MaxArgs: 0,
		Short: "say what this machine offers and what it lacks",
		Long: fmt.Sprintf(`Tries each kernel facility that checkpoint and restore use, looks at privileges and limits, and says what is missing
			and what for. The exit code is 5 if a checkpoint or a restore cannot work here.

			The oldest kernel with all that is required is Linux %d.%d.`, oldestMajor, oldestMinor),
		Objects: []cli.Object{{Of: "--json", Rows: `
			ok                       whether both can work here; if not, the exit code is 5
			checkpoint               whether a checkpoint can
			restore                  whether a restore can
			kernel                   the release of the kernel
			oldest_kernel            the oldest with all that is required
			facilities[].name        of each facility: its name
			facilities[].ok          whether it is there
			facilities[].checkpoint  whether a checkpoint cannot do without it
			facilities[].restore     whether a restore cannot do without it
			facilities[].for         what it is needed for, or what is lost without it
			facilities[].found       what was found; left out if nothing was
			facilities[].help        what to do about it; left out if it is there
			limits[].name            of each limit: its name
			limits[].value           what it is here
			limits[].for             what it limits`}},
		Flags: c.Command.Flags(),
		Run:   func([]string) error { return c.checkMachine() },
	}
}

func (c *command) checkMachine() error {
	r := newCheckReport(kernelRelease(), probeFacilities(), probeLimits())
	if c.JSON {
		c.PrintJSON(r)
	} else if !c.Quiet {
		c.Print(r.text())
	}
	if r.OK {
		return nil
	}
	if c.Quiet {
		return verb.Status(verb.Facility)
	}
	if c.JSON {
		return verb.Status(verb.Facility) // the one object is out
	}
	return &missingError{r.missing()}
}

func newCheckReport(kernel string, facilities []facility, limits []limit) checkReport {
	r := checkReport{
		Checkpoint: true, Restore: true,
		Kernel: kernel, OldestKernel: fmt.Sprintf("%d.%d", oldestMajor, oldestMinor),
		Facilities: facilities, Limits: limits,
	}
	for _, f := range facilities {
		r.Checkpoint = r.Checkpoint && (f.OK || !f.Checkpoint)
		r.Restore = r.Restore && (f.OK || !f.Restore)
	}
	r.OK = r.Checkpoint && r.Restore
	return r
}

// missing names what is required and not there.
func (r *checkReport) missing() []string {
	var names []string
	for _, f := range r.Facilities {
		if !f.OK && !f.optional() {
			names = append(names, f.Name)
		}
	}
	return names
}

// A missingError is a FacilityError of several facilities.
type missingError struct{ names []string }

func (e *missingError) Error() string { return "not available here: " + strings.Join(e.names, ", ") }

func (e *missingError) Unwrap() error {
	return &lazyrestore.FacilityError{Hint: "what is marked with ! above says what to do"}
}

// text is the report for people: what is there is one line, what is missing
// also says what it is for and what helps.
func (r *checkReport) text() string {
	var b strings.Builder
	for _, f := range r.Facilities {
		mark, found := " ", f.Found
		switch {
		case !f.OK && f.optional():
			mark = "-"
		case !f.OK:
			mark = "!"
		case found == "":
			found = "yes"
		}
		b.WriteString(strings.TrimRight(fmt.Sprintf("%s %-27s %s", mark, f.Name, found), " ") + "\n")
		if f.OK {
			continue
		}
		b.WriteString("      for: " + f.For + "\n")
		if f.Help != "" {
			b.WriteString("      help: " + f.Help + "\n")
		}
	}
	b.WriteByte('\n')
	for _, l := range r.Limits {
		fmt.Fprintf(&b, "  %-27s %-12s %s\n", l.Name, l.Value, l.For)
	}
	fmt.Fprintf(&b, "\ncheckpoint %s here, restore %s here\n", works(r.Checkpoint), works(r.Restore))
	return b.String()
}

func works(ok bool) string {
	if ok {
		return "works"
	}
	return "cannot work"
}
