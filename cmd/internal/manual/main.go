// Command manual writes the manual pages of a program, in mdoc(7), from the
// description that the program gives of itself: the one that its parser and
// its help use.
//
//	lazyrestore __describe | manual DIRECTORY
//	lazyrestore-VERB __describe | manual DIRECTORY
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: manual DIRECTORY < DESCRIPTION")
		os.Exit(2)
	}
	if err := run(os.Stdin, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "manual:", err)
		os.Exit(1)
	}
}

// run writes PROGRAM.1 and PROGRAM-VERB.1 for each verb into dir. An executable
// of one verb describes that, and not the program.
func run(description io.Reader, dir string) error {
	var m cli.Manual
	if err := json.NewDecoder(description).Decode(&m); err != nil {
		return fmt.Errorf("read the description: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if m.Short != "" {
		if err := write(dir, m.Program, overview(&m)); err != nil {
			return err
		}
	}
	for i := range m.Pages {
		p := &m.Pages[i]
		if err := write(dir, m.Program+"-"+p.Name, verb(&m, p)); err != nil {
			return err
		}
	}
	return nil
}

func write(dir, name, text string) error {
	return os.WriteFile(filepath.Join(dir, name+".1"), []byte(text), 0o644)
}

// A document is mdoc source under construction.
type document struct{ strings.Builder }

// macro writes a line that is a request; its arguments are words of ours.
func (d *document) macro(line string) { d.WriteString("." + line + "\n") }

// text writes words of the description, one sentence to a line, as mdoc asks
// for, with nothing in them taken for a request.
func (d *document) text(s string) {
	s = strings.NewReplacer(`\`, `\e`).Replace(s)
	for {
		before, after, more := cutSentence(s)
		if before != "" {
			d.WriteString(guard(before) + "\n")
		}
		if !more {
			return
		}
		s = after
	}
}

// cutSentence parts text after a full stop, or a colon, that is followed by a
// space and a capital letter.
func cutSentence(s string) (before, after string, more bool) {
	for i := 0; i+2 < len(s); i++ {
		if s[i] == '.' && s[i+1] == ' ' && 'A' <= s[i+2] && s[i+2] <= 'Z' {
			return s[:i+1], s[i+2:], true
		}
	}
	return s, "", false
}

// guard keeps a line from being a request.
func guard(line string) string {
	if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
		return `\&` + line
	}
	return line
}

// word protects an argument of a macro: neither a macro's name nor a delimiter.
func word(s string) string {
	s = strings.NewReplacer(`\`, `\e`, `"`, `\(dq`, "-", `\-`).Replace(s)
	if strings.ContainsAny(s, " |") || len(s) <= 3 {
		return `"\&` + s + `"`
	}
	return s
}

func (d *document) head(m *cli.Manual, name, short string) {
	d.macro("Dd $Mdocdate$")
	d.macro("Dt " + strings.ToUpper(name) + " 1")
	d.macro("Os")
	d.macro("Sh NAME")
	d.macro("Nm " + name)
	d.macro("Nd " + short)
}

// overview is the page of the program itself.
func overview(m *cli.Manual) string {
	var d document
	d.head(m, m.Program, m.Short)
	d.macro("Sh SYNOPSIS")
	d.macro("Nm")
	d.macro("Ar verb")
	d.macro("Op Ar flag ...")
	d.macro("Op Ar argument ...")
	d.macro("Sh DESCRIPTION")
	d.macro("Nm")
	d.text("writes a running process to an image and runs it again: within milliseconds, with none of its memory loaded. Pages stream in as they are touched, and in the background.")
	d.macro("Pp")
	d.text("The verbs are:")
	d.macro("Bl -tag -width Ds")
	for _, list := range [][]cli.Page{m.Pages, m.Others} {
		for _, p := range list {
			d.macro("It Cm " + word(p.Name))
			d.text(capital(p.Short) + ".")
		}
	}
	d.macro("El")
	d.object(&m.Failure)
	d.exit(m.Exit)
	d.macro("Sh SEE ALSO")
	var names []string
	for _, p := range slices.Concat(m.Pages, m.Others) {
		names = append(names, m.Program+"-"+p.Name)
	}
	slices.Sort(names)
	d.macro("Xr " + strings.Join(names, " 1 ,\n.Xr ") + " 1")
	return d.String()
}

// verb is the page of one verb.
func verb(m *cli.Manual, p *cli.Page) string {
	var d document
	d.head(m, m.Program+"-"+p.Name, p.Short)
	d.macro("Sh SYNOPSIS")
	d.macro("Nm " + m.Program + " " + p.Name)
	d.macro("Op Ar flag ...")
	if p.Args != "" {
		d.macro("Ar " + word(p.Args))
	}
	d.macro("Sh DESCRIPTION")
	for i, paragraph := range p.Paragraphs {
		if i > 0 {
			d.macro("Pp")
		}
		d.text(paragraph)
	}
	d.macro("Pp")
	d.text("The flags are:")
	d.macro("Bl -tag -width Ds")
	for i := range p.Flags {
		d.flag(&p.Flags[i])
	}
	d.macro("It Fl h , Fl \\-help")
	d.text("Print a help text.")
	d.macro("El")
	for i := range p.Objects {
		d.object(&p.Objects[i])
	}
	d.exit(m.Exit)
	if len(p.Examples) > 0 {
		d.macro("Sh EXAMPLES")
	}
	for i, e := range p.Examples {
		if i > 0 {
			d.macro("Pp")
		}
		d.text(e.Does)
		d.macro("Dl " + strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`).Replace(e.Line))
	}
	d.macro("Sh SEE ALSO")
	d.macro("Xr " + m.Program + " 1")
	return d.String()
}

func (d *document) flag(f *cli.FlagText) {
	line := "It "
	if f.Short != "" {
		line += "Fl " + f.Short + " , "
	}
	line += `Fl \-` + strings.ReplaceAll(f.Name, "-", `\-`)
	if f.Arg != "" {
		line += " Ar " + word(f.Arg)
	}
	d.macro(line)
	text := f.Usage
	if f.Default != "" {
		text += " (default " + f.Default + ")"
	}
	d.text(text + ".")
}

// object is the table of a JSON object.
func (d *document) object(o *cli.Object) {
	d.macro("Ss The JSON object of " + strings.ReplaceAll(o.Of, "-", `\-`))
	d.macro("Bl -tag -width Ds")
	for _, f := range o.Fields() {
		d.macro("It Va " + word(f.Name))
		d.text(capital(f.Means) + ".")
	}
	d.macro("El")
}

func (d *document) exit(codes []cli.ExitCode) {
	d.macro("Sh EXIT STATUS")
	d.macro("Bl -tag -width Ds")
	for _, c := range codes {
		d.macro(fmt.Sprintf("It %d", c.Code))
		d.text(c.Means)
	}
	d.macro("El")
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
