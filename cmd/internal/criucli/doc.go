// Package criucli reads CRIU's command line, for the verbs that stand in for
// its own: its options, with their abbreviations, -v4 and --no-X; its
// configuration files; and its conventions for logs, pid files, status
// descriptors and daemons.
//
// CRIU has one list of options for all that it does, and each of its commands
// takes them all: scripts rely on that. So they are all known here, and those
// that a verb has no use for are taken and left.
//
// Of the verbs that convert its images, it has the exit code for damage.
package criucli
