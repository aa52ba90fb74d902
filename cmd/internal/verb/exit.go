package verb

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
	"github.com/lazyrestore/lazyrestore/pageserver/client"
)

// Exit codes. Scripts branch on them: they are a promise.
const (
	Done     = 0
	Failed   = 1
	Usage    = 2
	Refused  = 3   // the process holds what an image cannot; the pid is taken
	Damaged  = 4   // the image is damaged, or of a newer version
	Facility = 5   // the machine, or the user's rights on it, lack something
	Source   = 6   // the page source is lost
	Ours     = 125 // a foreground restore failed before or beside its program
)

const Summary = "0 done, 1 failed, 2 usage, 3 refused, 4 image damaged,\n" +
	"5 facility missing, 6 page source lost; a foreground restore ends with its\n" +
	"program's own code, 128+N for a signal, 125 for a failure of ours"

// ExitCode is the exit code that stands for err.
func ExitCode(err error) int {
	var usage *cli.UsageError
	var refused *lazyrestore.RefusedError
	var facility *lazyrestore.FacilityError
	var ours *ForegroundError
	switch {
	case err == nil:
		return Done
	case errors.As(err, &ours):
		return Ours
	case errors.As(err, &usage), errors.Is(err, client.ErrAddress):
		return Usage
	case errors.As(err, &refused):
		return Refused
	case errors.Is(err, image.ErrDamaged), errors.Is(err, image.ErrVersion):
		return Damaged
	case errors.As(err, &facility):
		return Facility
	case errors.Is(err, lazyrestore.ErrSourceLost):
		return Source
	}
	return Failed
}

// codeWord names the codes in messages and JSON.
func codeWord(code int) string {
	switch code {
	case Usage:
		return "usage"
	case Refused:
		return "refused"
	case Damaged:
		return "image damaged"
	case Facility:
		return "facility missing"
	case Source:
		return "page source lost"
	}
	return "failed"
}

// ForegroundError is a failure of ours in a foreground restore, whose exit code
// must not be taken for the program's.
type ForegroundError struct{ Err error }

func (e *ForegroundError) Error() string { return e.Err.Error() }

func (e *ForegroundError) Unwrap() error { return e.Err }

// Status ends a verb with a code and no message of ours: the restored
// program's own.
type Status int

func (e Status) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// AboutImage says which image an error is about, unless it does itself.
func AboutImage(path string, err error) error {
	var about *fs.PathError
	if errors.As(err, &about) && about.Path == path {
		return err
	}
	return fmt.Errorf("image %s: %w", path, err)
}

// A Failure is an error as JSON.
type Failure struct {
	Error   string               `json:"error"`
	Code    int                  `json:"code"`              // of the table, also where 125 is the exit code
	Status  string               `json:"status"`            // the code in words
	Hint    string               `json:"hint,omitempty"`    // what to do about it
	Reasons []lazyrestore.Reason `json:"reasons,omitempty"` // all that was refused
}

// FailureObject tells of a Failure.
func FailureObject() cli.Object {
	return cli.Object{Of: "a verb that failed", Rows: `
		error           what went wrong
		code            the exit code that stands for it, also where a restore in the foreground ends with 125
		status          the code in words
		hint            what can be done about it, if that is known
		reasons[].what  of what was refused: the thing by its name
		reasons[].why   what is wrong with it
		reasons[].help  what can be done about it, if that is known`}
}

// DescribeFailure puts an error into the words that users get.
func DescribeFailure(err error) Failure {
	var ours *ForegroundError
	if errors.As(err, &ours) {
		err = ours.Err
	}
	f := Failure{Error: err.Error(), Code: ExitCode(err)}
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

// Fail tells of an error, as text and, if asked, as JSON, and returns the exit
// code. Without an error it says nothing.
func (c *Command) Fail(verb string, err error) int {
	if err == nil {
		return Done
	}
	var status Status
	if errors.As(err, &status) {
		return int(status)
	}
	if c.JSON {
		c.PrintJSON(DescribeFailure(err))
	}
	Tell(c.Stderr, verb, err)
	return ExitCode(err)
}

// Tell writes an error for people.
func Tell(w io.Writer, verb string, err error) {
	f := DescribeFailure(err)
	var ours *ForegroundError
	if errors.As(err, &ours) {
		f.Write(w, verb, fmt.Sprintf(" (status %d: %s)", f.Code, f.Status))
		return
	}
	f.Write(w, verb, "")
}

// Write is the failure as text: the reasons one to a line, the hint last.
func (f Failure) Write(w io.Writer, verb, suffix string) {
	var b strings.Builder
	b.WriteString("lazyrestore " + verb + ": ")
	if len(f.Reasons) == 0 {
		b.WriteString(f.Error + suffix)
	} else {
		reasons := (&lazyrestore.RefusedError{Reasons: f.Reasons}).Error()
		before, after, _ := strings.Cut(f.Error, reasons)
		b.WriteString(before + "refused" + after + suffix + ":")
		for _, r := range f.Reasons {
			b.WriteString("\n  " + line(r.What) + ": " + line(r.Why))
			if r.Help != "" {
				b.WriteString("\n      " + line(r.Help))
			}
		}
	}
	b.WriteByte('\n')
	if f.Hint != "" {
		b.WriteString("  " + f.Hint + "\n")
	}
	io.WriteString(w, Printable(b.String()))
}

// Print writes text to standard output, unless JSON is what goes there. A failure is that
// of the verb, unless it has Acted.
func (c *Command) Print(text string) {
	if !c.JSON {
		c.write(Printable(text))
	}
}

// Unwritten is the first failure to print.
func (c *Command) Unwritten() error { return c.unwritten }

func (c *Command) write(text string) {
	_, err := io.WriteString(c.Stdout, text)
	c.note(err)
}

func (c *Command) note(err error) {
	if err != nil && c.unwritten == nil {
		c.unwritten = fmt.Errorf("print to standard output: %w", err)
	}
}

// Note writes a message for people to standard error, unless -q.
func (c *Command) Note(text string) {
	if !c.Quiet {
		io.WriteString(c.Stderr, Printable("lazyrestore: "+text+"\n"))
	}
}

// PrintJSON writes one object to standard output. A failure is that of the verb, as for Print.
func (c *Command) PrintJSON(v any) { c.note(WriteJSON(c.Stdout, v)) }

// WriteJSON writes one object, indented.
func WriteJSON(w io.Writer, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

// ExitTable is the exit codes in the words of the manual.
func ExitTable() []cli.ExitCode {
	return []cli.ExitCode{
		{Code: Done, Means: "It was done."},
		{Code: Failed, Means: "It failed."},
		{Code: Usage, Means: "The command line was not understood."},
		{Code: Refused, Means: "It was refused: the process holds something that an image cannot hold, or this machine cannot take the image as it is, for example because the pid is taken."},
		{Code: Damaged, Means: "The image is damaged, or its format is newer than this program."},
		{Code: Facility, Means: "The machine, or the rights on it, lack something; lazyrestore check says what."},
		{Code: Source, Means: "The source of the pages was lost."},
		{Code: Ours, Means: "A restore in the foreground failed; the message and the JSON object have the code of this table. Else it ends with the code of the process, or 128+N if signal N ended it."},
	}
}
