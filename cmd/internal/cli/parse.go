package cli

import (
	"slices"
	"strings"
)

// A UsageError is a command line that cannot be understood. Hint is what the
// user may have meant, or where help is; it is never empty.
type UsageError struct {
	Problem string
	Hint    string
}

func (e *UsageError) Error() string { return e.Problem }

// ErrHelp is returned by Parse for -h and --help.
var ErrHelp = helpError{}

type helpError struct{}

func (helpError) Error() string { return "help was asked for" }

// Parse reads args, sets the flags' values and returns what is left. The error
// is ErrHelp or a *UsageError. The values of flags before the mistake are set.
func (c *Command) Parse(args []string) ([]string, error) {
	var rest []string
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		var err error
		switch {
		case arg == "--":
			rest = append(rest, args...)
			args = nil
		case strings.HasPrefix(arg, "--"):
			args, err = c.long(arg[2:], args)
		case len(arg) > 1 && arg[0] == '-':
			args, err = c.cluster(arg[1:], args)
		default:
			rest = append(rest, arg)
		}
		if err != nil {
			return nil, err
		}
	}
	return rest, c.count(rest)
}

// long reads one --name, --name=text or --name text; it returns the arguments
// that follow.
func (c *Command) long(arg string, args []string) ([]string, error) {
	name, text, has := strings.Cut(arg, "=")
	f := c.flag(name)
	switch {
	case f == nil && name == "help":
		return nil, ErrHelp
	case f == nil:
		return nil, c.unknown("--" + name)
	}
	if !has {
		if o, ok := f.Value.(Optional); ok {
			text = o.Implied()
		} else if len(args) == 0 {
			return nil, c.missing(f, "--"+name)
		} else {
			text, args = args[0], args[1:]
		}
	}
	return args, c.set(f, "--"+name, text)
}

// cluster reads -abc, where a and b stand alone and c may have a value in the
// same word or in the next.
func (c *Command) cluster(letters string, args []string) ([]string, error) {
	for letters != "" {
		letter := letters[:1]
		letters = letters[1:]
		f := c.short(letter[0])
		switch {
		case f == nil && letter == "h":
			return nil, ErrHelp
		case f == nil:
			return nil, c.unknown("-" + letter)
		}
		var text string
		optional, alone := f.Value.(Optional)
		switch {
		case strings.HasPrefix(letters, "="):
			text, letters = letters[1:], ""
		case alone:
			text = optional.Implied()
		case letters != "":
			text, letters = letters, ""
		case len(args) == 0:
			return nil, c.missing(f, "-"+letter)
		default:
			text, args = args[0], args[1:]
		}
		if err := c.set(f, "-"+letter, text); err != nil {
			return nil, err
		}
	}
	return args, nil
}

func (c *Command) set(f *Flag, as, text string) error {
	if err := f.Value.Set(text); err != nil {
		return &UsageError{
			Problem: as + " " + quoted(text) + ": " + err.Error(),
			Hint:    c.see(),
		}
	}
	return nil
}

// count checks the number of arguments.
func (c *Command) count(rest []string) error {
	switch {
	case len(rest) < c.MinArgs:
		problem := "an argument is missing: " + c.Args
		if c.MinArgs == 1 {
			problem = c.Args + " is missing"
		}
		return &UsageError{Problem: problem, Hint: "usage: " + c.UsageLine()}
	case slices.Contains(rest, ""):
		return &UsageError{Problem: "an argument is empty: a variable that is not set?", Hint: "usage: " + c.UsageLine()}
	case c.MaxArgs >= 0 && len(rest) > c.MaxArgs:
		return &UsageError{
			Problem: "one argument too many: " + quoted(rest[c.MaxArgs]),
			Hint:    "usage: " + c.UsageLine(),
		}
	}
	return nil
}

func (c *Command) missing(f *Flag, as string) error {
	return &UsageError{Problem: as + " needs a value: " + f.Arg, Hint: c.see()}
}

func (c *Command) unknown(as string) error {
	hint := c.Hints[as]
	if hint == "" && strings.HasPrefix(as, "--") {
		names := []string{"help"}
		for i := range c.Flags {
			if !c.Flags[i].Hidden {
				names = append(names, c.Flags[i].Name)
			}
		}
		if near := Nearest(as[2:], names); near != "" {
			hint = "did you mean --" + near + "?"
		}
	}
	if hint == "" {
		hint = c.see()
	}
	return &UsageError{Problem: c.Name + " has no flag " + as, Hint: hint}
}

func (c *Command) see() string { return "see lazyrestore " + c.Name + " --help" }

func quoted(s string) string { return `"` + s + `"` }
