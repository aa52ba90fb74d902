package cli

import "strings"

// width is the column at which help text is broken.
const width = 79

// UsageLine is the command line in one line: "lazyrestore verify [FLAG]... IMAGE".
func (c *Command) UsageLine() string {
	line := "lazyrestore " + c.Name
	if len(c.Flags) > 0 {
		line += " [FLAG]..."
	}
	if c.Args != "" {
		line += " " + c.Args
	}
	return line
}

// Help is the whole help text of the command.
func (c *Command) Help() string {
	var b strings.Builder
	b.WriteString("usage: " + c.UsageLine() + "\n\n")
	for _, p := range c.paragraphs() {
		b.WriteString(wrap(p, 0))
		b.WriteByte('\n')
	}
	b.WriteString("Flags:\n")
	for i := range c.Flags {
		if f := &c.Flags[i]; !f.Hidden {
			b.WriteString(f.help())
		}
	}
	b.WriteString("  -h, --help\n" + wrap("Print this text.", 10))
	for i := range c.Objects {
		b.WriteString("\nThe object of " + c.Objects[i].Of + ":\n")
		for _, f := range c.Objects[i].Fields() {
			b.WriteString("  " + f.Name + "\n" + wrap(f.Means, 10))
		}
	}
	if len(c.Examples) > 0 {
		b.WriteString("\nExamples:\n")
	}
	for _, e := range c.Examples {
		b.WriteString("  " + e.Line + "\n" + wrap(e.Does, 10))
	}
	return b.String()
}

// Synopsis is the flag as a user types it: "-D, --image IMAGE".
func (f *Flag) Synopsis() string {
	s := "--" + f.Name
	if f.Short != 0 {
		s = "-" + string(f.Short) + ", " + s
	}
	switch {
	case f.Arg != "":
		s += " " + f.Arg
	case f.takesText():
		s += " " + strings.Join(f.Choices, "|")
	}
	return s
}

func (f *Flag) help() string {
	head := "      " + f.Synopsis()
	if f.Short != 0 {
		head = "  " + f.Synopsis()
	}
	text := f.Usage
	if d := f.Default(); d != "" {
		text += " (default " + d + ")"
	}
	return head + "\n" + wrap(text+".", 10)
}

// wrap breaks text into lines that begin with indent spaces.
func wrap(text string, indent int) string {
	var b strings.Builder
	column := 0
	for _, word := range strings.Fields(text) {
		switch {
		case column == 0:
			b.WriteString(strings.Repeat(" ", indent))
			column = indent
		case column+1+len(word) > width:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			column = indent
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	b.WriteByte('\n')
	return b.String()
}
