package cli

import "strings"

// A Manual is what the generator of the manual pages is told of a program. It
// is JSON between two processes of one build.
type Manual struct {
	Program, Short, Version string
	Pages                   []Page
	Others                  []Page // verbs with executables and manuals of their own
	Exit                    []ExitCode
	Failure                 Object // what any verb prints that failed
}

// A Page is one verb.
type Page struct {
	Name, Args, Short string
	Paragraphs        []string
	Flags             []FlagText
	Objects           []Object
	Examples          []Example
}

// A FlagText is one flag, in words.
type FlagText struct {
	Name, Short, Arg string
	Usage, Default   string
}

// An ExitCode is a number and what it means.
type ExitCode struct {
	Code  int
	Means string
}

// Page describes the command for the manual.
func (c *Command) Page() Page {
	p := Page{Name: c.Name, Args: c.Args, Short: c.Short, Paragraphs: c.paragraphs(), Examples: c.Examples, Objects: c.Objects}
	for i := range c.Flags {
		f := &c.Flags[i]
		if f.Hidden {
			continue
		}
		t := FlagText{Name: f.Name, Arg: f.Arg, Usage: f.Usage, Default: f.Default()}
		if f.Short != 0 {
			t.Short = string(f.Short)
		}
		p.Flags = append(p.Flags, t)
	}
	return p
}

// paragraphs are Long's, each in one line.
func (c *Command) paragraphs() []string {
	var list []string
	for p := range strings.SplitSeq(c.Long, "\n\n") {
		if words := strings.Fields(p); len(words) > 0 {
			list = append(list, strings.Join(words, " "))
		}
	}
	return list
}
