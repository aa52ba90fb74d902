// Package lazyrestore checkpoints a running process and restores it lazily.
// Checkpoint writes a process to an image, a directory. Restore has the process
// of an image running again before its memory is loaded: its pages come when
// they are touched, and in the background.
//
// The package joins an engine (native), which reads a process and builds it
// anew, with a pager, which fills its memory from an image in a store.
// ARCHITECTURE.md tells how; SUPPORT.md says what of a process is preserved, and
// what is refused.
//
// A restored process is a child of the calling process, and its pager is part
// of that: whoever calls Restore has to live until Process.Resident is closed.
// Both calls need Linux 5.13 on x86-64, and privileges that the command
// lazyrestore check lists.
package lazyrestore
