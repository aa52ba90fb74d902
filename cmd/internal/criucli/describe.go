package criucli

import (
	"io"
	"strings"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
)

// Asked answers completion scripts and the generator of the manual, if it is
// they who ask: args are the command's, with its name. short is what the verb
// does; help is its help text, which the answers are made of: paragraphs, and
// between them options, indented, with their texts beside or below them.
func Asked(args []string, stdout io.Writer, name, short, help string) bool {
	if len(args) < 2 {
		return false
	}
	switch args[1] {
	case verb.CompleteVerb:
		word := args[len(args)-1]
		for _, f := range page(name, short, help).Flags {
			if option := "--" + f.Name; strings.HasPrefix(option, word) && strings.HasPrefix(word, "-") {
				io.WriteString(stdout, option+"\t"+f.Usage+"\n")
			}
		}
		return true
	case verb.DescribeVerb:
		exit := []cli.ExitCode{{Code: 0, Means: "Done."}, {Code: 1, Means: "Anything else."}}
		verb.WriteJSON(stdout, cli.Manual{Program: "lazyrestore", Pages: []cli.Page{page(name, short, help)}, Exit: exit})
		return true
	}
	return false
}

// page reads a help text.
func page(name, short, help string) cli.Page {
	p := cli.Page{Name: name, Short: short}
	var paragraph []string
	end := func() {
		text := strings.Join(paragraph, " ")
		if text != "" && !strings.HasPrefix(text, "usage:") && !strings.HasPrefix(text, "Exit status:") {
			p.Paragraphs = append(p.Paragraphs, text)
		}
		paragraph = nil
	}
	for line := range strings.Lines(help) {
		line = strings.TrimRight(line, "\n")
		text := strings.TrimSpace(line)
		switch indented := strings.HasPrefix(line, "  "); {
		case text == "":
			end()
		case !indented:
			paragraph = append(paragraph, text)
		case strings.HasPrefix(text, "-"):
			p.Flags = append(p.Flags, described(text)...)
		case len(p.Flags) > 0:
			last := &p.Flags[len(p.Flags)-1]
			last.Usage = strings.TrimSpace(last.Usage + " " + text)
		}
	}
	end()
	for i := range p.Flags {
		u := &p.Flags[i].Usage
		if *u == "" {
			*u = "as CRIU has it" // one of several on a line, whose text the last one has
		}
		*u = strings.ToUpper((*u)[:1]) + strings.TrimSuffix((*u)[1:], ".")
	}
	return p
}

// described reads a line that begins with options: "-d, --daemon  its text",
// "--a, --b FILE".
func described(line string) []cli.FlagText {
	heads, usage, _ := strings.Cut(line, "  ")
	var all []cli.FlagText
	letter := ""
	for head := range strings.SplitSeq(heads, ", ") {
		option, arg, _ := strings.Cut(head, " ")
		switch {
		case !strings.HasPrefix(option, "--"):
			letter, _ = strings.CutPrefix(option, "-")
			continue
		case len(all) > 0 && arg != "":
			for i := range all {
				all[i].Arg = arg // of all of them
			}
		}
		all = append(all, cli.FlagText{Name: option[2:], Short: letter, Arg: arg})
		letter = ""
	}
	if letter != "" || len(all) == 0 {
		return nil // -vNUM, -v
	}
	all[len(all)-1].Usage = strings.TrimSpace(usage)
	return all
}
