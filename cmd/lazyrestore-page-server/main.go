// Command lazyrestore-page-server is the verb page-server of lazyrestore: it
// takes the place of criu page-server, with its words.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/lazyrestore/lazyrestore/cmd/internal/criucli"
	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
)

const name = "lazyrestore page-server"

const help = `usage: lazyrestore page-server -D DIR [OPTION]...

Takes the place of criu page-server: receives the memory of a criu dump
--page-server, or of a pre-dump, and ends when all that was sent is on the disk.
With --lazy-pages it gives the pages of an image set to lazy-pages daemons, any
number of them, until it is ended by a signal.

  -D, --images-dir DIR     where the images go, or are. With --codec it is absent
                           or empty before; with --lazy-pages it is an image set,
                           or an image that lazyrestore import, or --codec, made
      --address A          listen on this address only; default: on all
      --port P             listen on this port; default: one that is free, which
                           the log tells
      --ps-socket FD       take this connection, and listen nowhere
      --prev-images-dir DIR
                           the images that these build on, relative to -D: files
                           of CRIU's, or with --codec also an image
      --codec zstd[:LEVEL]|s2|lz4|none
                           make an image of lazyrestore, compressed, that holds
                           all pages of the chain, and not CRIU's own files
      --lazy-pages         give pages
      --max-clients N      how many may be connected at once; default: 256
      --tls                speak TLS, with certificates on both sides
      --tls-cacert, --tls-cacrl, --tls-cert, --tls-key FILE
                           as CRIU has them, at the same places if not given
  -W, --work-dir DIR       where logs and pid files are made; default: the images
                           directory, with --codec the current one
  -d, --daemon             run in the background once the socket is there
      --pidfile FILE       where a daemon's pid is written
      --status-fd FD       a zero byte is written there once the socket is there
  -o, --log-file FILE      default: standard error
  -v, --verbosity N        -vN: 1 errors, 2 warnings (default), 3 information, 4 all
      --config FILE, --no-default-config
                           CRIU's configuration files
  -h, --help               show this text
  -V, --version            show the version

All other options of CRIU are taken, and have no effect here; with --auto-dedup,
nothing is removed from the images before. Long options may be abbreviated.
CRIU up to 4.1 and from 4.2 on speak differently: both are understood. Without
--tls whoever reaches the port may read the memory, or send one.

Exit status: 0 all that was sent is there and on the disk, or a server of pages was
ended; 1 anything else: of what was sent nothing is left. Whether the dump has
succeeded is the exit status of criu dump: one that fails may end its
transfer as a good one does. The next dump of the same tasks replaces what is then
left of it, but with --codec the directory is to be removed before.
`

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

// own are the options that CRIU does not have.
var own = []criucli.Own{
	{Name: "codec", Argument: true},
	{Name: "max-clients", Argument: true},
}

// buildVersion is set by the linker, as lazyrestore's own is.
var buildVersion = "devel"

func run(args []string, stdout, stderr io.Writer) int {
	if criucli.Asked(args, stdout, "page-server", "receive pages from criu dump --page-server, or give them", help) {
		return 0
	}
	o, err := criucli.Parse(args[1:], own...)
	switch {
	case errors.Is(err, criucli.ErrHelp):
		fmt.Fprint(stdout, help)
		return 0
	case errors.Is(err, criucli.ErrVersion):
		fmt.Fprintln(stdout, name+" "+buildVersion)
		return 0
	case err != nil:
		return criucli.Exit(stderr, name, err)
	}
	if len(o.Args) > 0 {
		return criucli.Exit(stderr, name, &criucli.UsageError{Problem: "what is " + strings.Join(o.Args, " ") + "?", Hint: "see --help"})
	}
	if _, made := o.Own["codec"]; made && o.WorkDir == "" {
		o.WorkDir = "." // the images directory is made when all is there
	}
	if done, err := o.Daemonize(args); done || err != nil {
		return criucli.Exit(stderr, name, err)
	}
	log, err := o.OpenLog(stderr)
	if err != nil {
		return criucli.Exit(stderr, name, err)
	}
	defer log.Close()
	logger := o.NewLogger(log, "page-server")
	verb.OutliveReaders()
	ctx, stop := verb.UntilEnded()
	defer stop()
	if err := serve(ctx, o, logger); err != nil {
		logger.Error("failed", "error", err)
		if o.LogFile != "" && o.LogFile != "-" {
			return criucli.Exit(stderr, name, err)
		}
		return 1
	}
	return 0
}
