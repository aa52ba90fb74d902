package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
)

// Exit codes. Scripts branch on them: they are a promise.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitRefused  = 3   // the process holds what an image cannot; the pid is taken
	exitDamaged  = 4   // the image is damaged, or of a newer version
	exitFacility = 5   // the machine, or the user's rights on it, lack something
	exitSource   = 6   // the page source is lost
	exitOurs     = 125 // a foreground restore failed before or beside its program
)

const exitSummary = "0 done, 1 failed, 2 usage, 3 refused, 4 image damaged,\n" +
	"5 facility missing, 6 page source lost; a foreground restore ends with its\n" +
	"program's own code, 128+N for a signal, 125 for a failure of ours"

// ExitCode is the exit code that stands for err.
func ExitCode(err error) int {
	var usage *cli.UsageError
	var refused *lazyrestore.RefusedError
	var facility *lazyrestore.FacilityError
	var ours *foregroundError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &ours):
		return exitOurs
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &refused):
		return exitRefused
	case errors.Is(err, image.ErrDamaged), errors.Is(err, image.ErrVersion):
		return exitDamaged
	case errors.As(err, &facility):
		return exitFacility
	case errors.Is(err, lazyrestore.ErrSourceLost):
		return exitSource
	}
	return exitFailed
}

// codeWord names the codes in messages and JSON.
func codeWord(code int) string {
	switch code {
	case exitUsage:
		return "usage"
	case exitRefused:
		return "refused"
	case exitDamaged:
		return "image damaged"
	case exitFacility:
		return "facility missing"
	case exitSource:
		return "page source lost"
	}
	return "failed"
}

// foregroundError is a failure of ours in a foreground restore, whose exit code
// must not be taken for the program's.
type foregroundError struct{ err error }

func (e *foregroundError) Error() string { return e.err.Error() }

func (e *foregroundError) Unwrap() error { return e.err }

// exitStatus ends a verb with a code and no message of ours: the restored
// program's own.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// aboutImage says which image an error is about, unless it does itself.
func aboutImage(path string, err error) error {
	var about *fs.PathError
	if errors.As(err, &about) && about.Path == path {
		return err
	}
	return fmt.Errorf("image %s: %w", path, err)
}

// A failure is an error as JSON.
type failure struct {
	Error   string               `json:"error"`
	Code    int                  `json:"code"`              // of the table, also where 125 is the exit code
	Status  string               `json:"status"`            // the code in words
	Hint    string               `json:"hint,omitempty"`    // what to do about it
	Reasons []lazyrestore.Reason `json:"reasons,omitempty"` // all that was refused
}

// describeFailure puts an error into the words that users get.
func describeFailure(err error) failure {
	var ours *foregroundError
	if errors.As(err, &ours) {
		err = ours.err
	}
	f := failure{Error: err.Error(), Code: ExitCode(err)}
	f.Status = codeWord(f.Code)
	var usage *cli.UsageError
	var refused *lazyrestore.RefusedError
	var facility *lazyrestore.FacilityError
	switch {
	case errors.As(err, &usage):
		f.Hint = usage.Hint
	case errors.As(err, &refused):
		f.Reasons = refused.Reasons
	case errors.As(err, &facility):
		f.Hint = facility.Hint
		if f.Hint == "" {
			f.Hint = "lazyrestore check says what this machine lacks"
		}
	}
	return f
}

// fail tells of an error, as text and, if asked, as JSON, and returns the exit
// code. Without an error it says nothing.
func (c *command) fail(verb string, err error) int {
	if err == nil {
		return exitDone
	}
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	if c.common.json {
		c.printJSON(describeFailure(err))
	}
	tell(c.stderr, verb, err)
	return ExitCode(err)
}

// tell writes an error for people.
func tell(w io.Writer, verb string, err error) {
	f := describeFailure(err)
	var ours *foregroundError
	if errors.As(err, &ours) {
		f.write(w, verb, fmt.Sprintf(" (status %d: %s)", f.Code, f.Status))
		return
	}
	f.write(w, verb, "")
}

// write is the failure as text: the reasons one to a line, the hint last.
func (f failure) write(w io.Writer, verb, suffix string) {
	var b strings.Builder
	b.WriteString("lazyrestore " + verb + ": ")
	if len(f.Reasons) == 0 {
		b.WriteString(f.Error + suffix)
	} else {
		reasons := (&lazyrestore.RefusedError{Reasons: f.Reasons}).Error()
		before, after, _ := strings.Cut(f.Error, reasons)
		b.WriteString(before + "refused" + after + suffix + ":")
		for _, r := range f.Reasons {
			b.WriteString("\n  " + r.What + ": " + r.Why)
			if r.Help != "" {
				b.WriteString("\n      " + r.Help)
			}
		}
	}
	b.WriteByte('\n')
	if f.Hint != "" {
		b.WriteString("  " + f.Hint + "\n")
	}
	io.WriteString(w, b.String())
}

// print writes text to standard output, unless JSON is what goes there.
func (c *command) print(text string) {
	if !c.common.json {
		io.WriteString(c.stdout, text)
	}
}

// note writes a message for people to standard error, unless -q.
func (c *command) note(text string) {
	if !c.common.quiet {
		io.WriteString(c.stderr, "lazyrestore: "+text+"\n")
	}
}

// printJSON writes one object to standard output.
func (c *command) printJSON(v any) { writeJSON(c.stdout, v) }

func writeJSON(w io.Writer, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(text, '\n'))
	return err
}
