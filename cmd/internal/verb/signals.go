package verb

import (
	"context"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// UntilEnded is a context that ends with the first signal that is to end the command.
func UntilEnded() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), NotIgnored(syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP)...)
}

// NotIgnored are those of signals that the command was not started to ignore. nohup(1) has it ignore
// SIGHUP, and a shell without job control SIGINT where it is to run in the background: the hang-up, and
// the interrupt of whatever runs in the foreground, are not meant for it. To ask for such a signal would end that.
func NotIgnored(signals ...os.Signal) []os.Signal {
	return slices.DeleteFunc(signals, signal.Ignored)
}

// OutliveReaders has a write to standard output or standard error that nobody reads any more fail, where else it
// ends the command (os/signal has it under SIGPIPE): whoever waits for memory does not depend on who reads messages.
// Programs that are started later inherit it. To ask for the signal instead takes Go a thread of its own and a processor a
// fifth of a millisecond, amid a restore.
func OutliveReaders() { signal.Ignore(syscall.SIGPIPE) }
