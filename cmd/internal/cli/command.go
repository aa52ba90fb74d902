// Package cli describes commands and reads their arguments. One description
// of a verb and its flags serves the parser, the help text, the completion of
// three shells and the manual pages.
//
// The grammar is the one of getopt_long, as pflag has it: -q, -qn, -D DIR,
// -DDIR, --image DIR, --image=DIR, flags and arguments mixed, "--" before
// arguments that begin with a dash. It is a package of its own because start-up
// is a good part of a restore: pflag imports net, which is initialised whatever
// the verb and costs 0.1 ms of 1.3 (lazyrestore bench startup). A test holds this
// parser against pflag's.
//
// Nothing here prints, exits or reads the environment.
package cli

import "strings"

// A Command is one verb.
type Command struct {
	Name    string  // the word on the command line
	Args    string  // what follows the flags, for the usage line: "PID"
	MinArgs int     // fewer is a usage error
	MaxArgs int     // more is one too; -1: any number
	Short   string  // one line, no full stop
	Long    string  // paragraphs, parted by empty lines
	Flags   []Flag  // in the order in which help shows them
	Operand Operand // what completion offers for the arguments

	Objects  []Object // that it prints as JSON
	Examples []Example
	Hints    map[string]string // a flag that others have ("-t", "--tree") to what to say instead
	External bool              // it is a program of its own, lazyrestore-NAME
	Run      func(args []string) error
}

// An Example is a command line and what it does.
type Example struct {
	Line, Does string
}

// An Object is a JSON object that a command prints.
type Object struct {
	Of   string // what asks for it: "--json"
	Rows string // a line for each field: its name, as Field has it, and what it is
}

// A Field is one value in an object. Its name is the way there: "problems[].object" is in
// each element of a list, and NAME stands for whatever name there is.
type Field struct {
	Name, Means string
}

// Fields are the rows of o.
func (o *Object) Fields() []Field {
	var list []Field
	for line := range strings.Lines(o.Rows) {
		if name, means, _ := strings.Cut(strings.TrimSpace(line), " "); name != "" {
			list = append(list, Field{name, strings.TrimSpace(means)})
		}
	}
	return list
}

// Operand is the kind of thing that an argument or a flag's value names; a
// shell completes it.
type Operand string

// The kinds of operands. OperandNone is completed with nothing.
const (
	OperandNone      Operand = ""
	OperandPID       Operand = "pid"
	OperandDirectory Operand = "directory"
	OperandFile      Operand = "file"
)

// A Flag is one option of a command.
type Flag struct {
	Name    string // without dashes
	Short   byte   // a letter, or 0
	Value   Value
	Arg     string // the name of its value in help, "" where it takes none
	Choices []string
	Operand Operand
	Usage   string // a sentence without its full stop
	Hidden  bool   // neither in help nor in the manual
}

// Value takes the text of a flag. A value that also implements Optional may
// stand without text.
type Value interface {
	// Set reads the text; its error says what was expected.
	Set(text string) error
	// String is the value as text: the default, before any Set.
	String() string
}

// Optional values are set to Implied() by a flag that stands alone.
type Optional interface {
	Implied() string
}

// takesText reports whether the flag needs a value.
func (f *Flag) takesText() bool {
	_, optional := f.Value.(Optional)
	return !optional
}

// Default is the value in force if the flag is not given, "" for none.
func (f *Flag) Default() string {
	switch s := f.Value.String(); {
	case !f.takesText() && (s == "false" || s == "0"):
		return ""
	default:
		return s
	}
}

// flag finds a flag by its name.
func (c *Command) flag(name string) *Flag {
	for i := range c.Flags {
		if c.Flags[i].Name == name {
			return &c.Flags[i]
		}
	}
	return nil
}

// short finds a flag by its letter.
func (c *Command) short(letter byte) *Flag {
	for i := range c.Flags {
		if letter != 0 && c.Flags[i].Short == letter {
			return &c.Flags[i]
		}
	}
	return nil
}
