package main

import (
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/lazyrestore/proc"
)

// kernelThread is PF_KTHREAD of linux/sched.h, in the flags of /proc/PID/stat.
const kernelThread = 0x00200000

// A completionScript is what completion --json prints.
type completionScript struct {
	Shell  string `json:"shell"`
	Script string `json:"script"`
}

func (c *command) completion() *cli.Command {
	shells := cli.Shells()
	return &cli.Command{
		Name: "completion", Args: strings.Join(shells, "|"), MinArgs: 1, MaxArgs: 1, Operand: cli.OperandNone,
		Short: "print a completion script for a shell",
		Long: `Prints a script that makes a shell complete verbs, flags, their values, pids and paths. make install puts the
			scripts where the shells look for them.`,
		Objects: []cli.Object{{Of: "--json", Rows: `
			shell   the shell
			script  the script`}},
		Flags:    c.Command.Flags(),
		Examples: []cli.Example{{Line: "source <(lazyrestore completion bash)", Does: "Complete in this shell."}},
		Run: func(args []string) error {
			script := cli.CompletionScript("lazyrestore", verb.CompleteVerb, args[0])
			if script == "" {
				return &cli.UsageError{Problem: "there is no completion for " + args[0], Hint: "for " + strings.Join(shells, ", ") + " there is"}
			}
			if c.JSON {
				c.PrintJSON(completionScript{args[0], script})
				return nil
			}
			c.Print(script)
			return nil
		},
	}
}

// complete prints what the last of words can be, one to a line, a tab before
// what it means. The scripts ask for it.
func (c *command) complete(words []string) int {
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	for _, line := range c.candidates(words) {
		c.Print(line + "\n")
	}
	return verb.Done
}

func (c *command) candidates(words []string) []string {
	if len(words) <= 1 {
		var lines []string
		for _, v := range verbs() {
			short := v.short
			if v.build != nil {
				short = v.build(new(command)).Short
			}
			lines = append(lines, v.name+"\t"+short)
		}
		return cli.Matching(lines, strings.Join(words, ""))
	}
	build, external := lookup(words[0])
	if external {
		return ofExternal(words)
	}
	if build == nil {
		return nil
	}
	def := build(new(command))
	if def.Name == "completion" && len(words) == 2 {
		return cli.Matching(cli.Shells(), words[1])
	}
	if _, operand := def.Complete(words[1:]); operand == cli.OperandPID {
		return cli.Matching(runningProcesses(), words[len(words)-1])
	}
	return verb.Candidates(def, words[1:])
}

// ofExternal asks the executable of a verb; one that is not there knows nothing.
func ofExternal(words []string) []string {
	self, err := os.Executable()
	if err != nil {
		return nil
	}
	out, err := exec.Command(beside(self, words[0]), append([]string{verb.CompleteVerb, "--"}, words...)...).Output()
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
}

// runningProcesses lists the processes of this user, with their names.
func runningProcesses() []string {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var lines []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		if st, err := proc.ParseStat(stat); err == nil && st.Flags&kernelThread == 0 {
			lines = append(lines, e.Name()+"\t"+st.Comm)
		}
	}
	return lines
}
