package verb

import (
	"io"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
)

// Verbs that people do not type, of lazyrestore and of each executable beside
// it.
const (
	CompleteVerb = "__complete" // what completion scripts ask
	DescribeVerb = "__describe" // what the generator of the manual asks
)

// External runs the verb of an executable of its own, lazyrestore-VERB, and
// returns the exit code. build is called once for each run.
func External(build func(*Command) *cli.Command, args []string, stdout, stderr io.Writer) int {
	c := &Command{Stdout: stdout, Stderr: stderr}
	def := build(c)
	if Asked(def, args, stdout) {
		return Done
	}
	return c.Do(def, args)
}

// Asked answers completion scripts and the generator of the manual, if it is
// they who ask.
func Asked(def *cli.Command, args []string, stdout io.Writer) bool {
	if len(args) == 0 {
		return false
	}
	switch args[0] {
	case CompleteVerb:
		// As lazyrestore is asked: "--", then all words from the verb on.
		if words := args[1:]; len(words) > 2 {
			for _, line := range Candidates(def, words[2:]) {
				io.WriteString(stdout, line+"\n")
			}
		}
		return true
	case DescribeVerb:
		WriteJSON(stdout, cli.Manual{Program: "lazyrestore", Pages: []cli.Page{def.Page()}, Exit: ExitTable()})
		return true
	}
	return false
}

// Candidates are what the last of words can be, as completion scripts are told.
func Candidates(def *cli.Command, words []string) []string {
	lines, operand := def.Complete(words)
	switch operand {
	case cli.OperandNone, cli.OperandPID:
	default:
		lines = append(lines, ":"+string(operand)) // the shell knows paths better
	}
	return lines
}
