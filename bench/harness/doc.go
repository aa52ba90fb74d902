// Package harness takes the figures: it checkpoints and restores the programs
// of bench/workload with each subject (ours, CRIU, a cold start, a floor made
// of C) and compares.
//
// Every figure is a ratio of two things that were measured in the same run, in
// turns, so that a busy machine hits both alike: machines differ, ratios less.
//
// The way through it:
//
//	Figures ─▶ Figure.Measure ─▶ Env.hold    start a program, have a subject checkpoint it
//	                          ─▶ Env.rounds  the subjects in turns, the order reversed each time
//	                             └▶ Env.restore ─▶ Restored: First, Signal, Stop
//	                          ─▶ Result      series of samples, one ratio a round
//	           Report ◀─────────┘
//
// Rules that it keeps: it ends only processes that it started or that are
// their descendants, by pidfd; every wait has an end; what it writes lies in
// one directory of its own, which is gone afterwards, after a signal too.
//
// TTFI, the time to first instruction, is from the clock just before the
// restore command is started to the first clock reading of the restored
// program's own loop (see bench/workload/c/stamp.h). CRIU's lazy-pages daemon
// is started before that, and is not counted: its users start it beforehand.
package harness
