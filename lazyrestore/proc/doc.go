// Package proc is the only place that reads /proc and that speaks ptrace(2).
// It holds three things, from the pure to the daring:
//
//   - Parsers. ParseX turns the bytes of one file of /proc into plain data and
//     makes no system call; ReadX(pid) reads the file and parses it. A line
//     that a parser does not know is handed on in a field called Unknown, never
//     dropped: state may hide in it, and whoever dumps a process has to refuse
//     what it cannot name.
//   - Tracer. The kernel ties a tracee to the thread that seized it, so all
//     ptrace calls run on one locked thread behind Tracer.Do, and end with it.
//   - Remote system calls. A table of calls is run by a small loop of position
//     independent code inside another process: a thread that is stopped under
//     a Tracer (Injector), or a child that has no memory of its own yet
//     (CloneExec). The loop is taken from this program's own text.
//
// Parsers and plain data may be used from any number of goroutines. A Tracer
// and what it hands out (Thread, Injector) belong to one goroutine at a time.
package proc
