// Package workload holds the programs that the benchmarks and the tests of
// real programs checkpoint and restore, and starts them.
//
// The sources are part of the package and are built where they are needed, by
// a Builder, with the machine's own C compiler and Go; LAMMPS and NumPy come
// from the distribution (install.sh beside this file installs them).
//
// All programs keep one protocol, so that whoever runs them needs to know
// nothing about any of them:
//
//   - A program runs in a directory of its own with a session of its own. Its
//     standard input is /dev/null, its standard output and error are regular
//     files there, named stdout and stderr.
//   - It is Ready for a checkpoint once a line of its output says so, and is
//     then in the middle of its work.
//   - Its Result is the lines of its output that match a pattern, and depends
//     on nothing but its arguments: a run that was interrupted and restored
//     ends with the same as one that was not.
//   - It reads the clock all the time and writes the readings to a ring in the
//     file stamp (c/stamp.h), which is how the time to its first instruction
//     after a restore is seen from outside. Programs that are not ours do so in
//     a thread that is loaded into them (c/stamp.c).
package workload
