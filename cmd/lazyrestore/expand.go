package main

import (
	"os"
	"strconv"
	"strings"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli"
)

// rankVariables tell a process its rank, in the order in which they are
// believed: Slurm, PMIx, Open MPI, MPICH and its kin.
var rankVariables = [...]string{"SLURM_PROCID", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"}

// names are what the words in a path stand for.
type names struct {
	pid      int
	getenv   func(string) string
	hostname func() (string, error)
}

func namesOf(pid int) names { return names{pid, os.Getenv, os.Hostname} }

// expand replaces %j by the Slurm job, %t by the rank of the task, %h by the
// host's name up to the first dot, %p by the pid and %% by a percent sign. A
// word that has no value here is a usage error: two ranks must never write to
// one place.
func (n names) expand(path string) (string, error) {
	var b strings.Builder
	for {
		text, after, found := strings.Cut(path, "%")
		b.WriteString(text)
		if !found {
			return b.String(), nil
		}
		if after == "" {
			return "", &cli.UsageError{Problem: "a lone % ends the path", Hint: "write %% for a percent sign"}
		}
		value, err := n.word(after[0])
		if err != nil {
			return "", err
		}
		b.WriteString(value)
		path = after[1:]
	}
}

func (n names) word(letter byte) (string, error) {
	switch letter {
	case '%':
		return "%", nil
	case 'p':
		return strconv.Itoa(n.pid), nil
	case 'h':
		host, err := n.hostname()
		if err != nil {
			return "", err
		}
		host, _, _ = strings.Cut(host, ".")
		return host, nil
	case 'j':
		return n.variable("%j", "SLURM_JOB_ID")
	case 't':
		return n.variable("%t", rankVariables[:]...)
	}
	return "", &cli.UsageError{
		Problem: "%" + string(letter) + " means nothing in a path",
		Hint:    "%j is the job, %t the task, %h the host, %p the pid, %% a percent sign",
	}
}

// variable is the first of the environment's variables that is set. It names
// what will be a path, so it may not hold a slash.
func (n names) variable(word string, variables ...string) (string, error) {
	for _, name := range variables {
		value := n.getenv(name)
		if value == "" {
			continue
		}
		if strings.Contains(value, "/") || value == ".." {
			return "", &cli.UsageError{Problem: name + " is " + value + ", which cannot be part of a path", Hint: "unset it, or name the path without " + word}
		}
		return value, nil
	}
	hint := "none of " + strings.Join(variables, ", ") + " is set"
	if len(variables) == 1 {
		hint = variables[0] + " is not set"
	}
	return "", &cli.UsageError{Problem: word + " has no value here", Hint: hint}
}
