// Command lazyrestore-lazy-pages is the verb lazy-pages of lazyrestore: it takes
// the place of criu lazy-pages, with its words.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/lazyrestore/lazyrestore/cmd/internal/criucli"
	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/lazypages"
	"github.com/lazyrestore/lazyrestore/lazyrestore/pager"
)

const name = "lazyrestore lazy-pages"

const help = `usage: lazyrestore lazy-pages -D DIR [OPTION]...

Takes the place of criu lazy-pages: fills the memory of what criu restore
--lazy-pages builds, as it is touched and in the background. It is started
before criu restore, with the same -D and -W.

  -D, --images-dir DIR     the image set, or an image that was made of it by
                           lazyrestore import
  -W, --work-dir DIR       where lazy-pages.socket, logs and pid files are made;
                           default: the images directory
      --image IMAGE        the pages are in this image, made of the set by
                           lazyrestore import: a directory, or an address as
                           lazyrestore restore takes it (tcp://HOST/NAME)
      --image-digest D     it has to be the image with this digest
      --page-server        the pages are with a page server: it is connected to at the
                           start, for at most a minute, before the socket is there
      --address A          its address
      --port P             its port
      --dialect 4.1|4.2    the CRIU that it is of: up to 4.1 (default), or from
                           4.2 on
      --tls                speak TLS with it; --tls-cacert, --tls-cacrl, --tls-cert,
                           --tls-key FILE, --tls-no-cn-verify as CRIU has them
      --background full|none
                           whether pages come that nobody has touched (full)
      --resume             go on in the place of a daemon that was killed: same
                           -D and -W; refused while one serves there
  -d, --daemon             run in the background once the socket is there, for
                           which the command waits
      --pidfile FILE       where a daemon's pid is written
      --status-fd FD       a zero byte is written there once the socket is there
  -o, --log-file FILE      default: standard error
  -v, --verbosity N        -vN: 1 errors, 2 warnings (default), 3 information, 4 all
      --display-stats      print what was done at the end
      --config FILE, --no-default-config
                           CRIU's configuration files
  -h, --help               show this text
  -V, --version            show the version

All other options of CRIU are taken, and have no effect here. Long options may
be abbreviated. A daemon that ends, for whatever reason, leaves its tasks
waiting for the pages that they miss, never reading zeros: --resume goes on.

Exit status: 0 all is resident, or the tasks have ended; 1 anything else.
`

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

// own are the options that CRIU does not have.
var own = []criucli.Own{
	{Name: "image", Argument: true},
	{Name: "image-digest", Argument: true},
	{Name: "dialect", Argument: true},
	{Name: "background", Argument: true},
	{Name: "resume"},
}

func run(args []string, stdout, stderr io.Writer) int {
	if criucli.Asked(args, stdout, "lazy-pages", "serve pages to criu restore --lazy-pages", help) {
		return 0
	}
	o, err := criucli.Parse(args[1:], own...)
	switch {
	case errors.Is(err, criucli.ErrHelp):
		fmt.Fprint(stdout, help)
		return 0
	case errors.Is(err, criucli.ErrVersion):
		fmt.Fprintln(stdout, name+" "+version())
		return 0
	case err != nil:
		return criucli.Exit(stderr, name, err)
	}
	if len(o.Args) > 0 {
		return criucli.Exit(stderr, name, &criucli.UsageError{Problem: "what is " + strings.Join(o.Args, " ") + "?", Hint: "see --help"})
	}
	if done, err := o.Daemonize(args); done || err != nil {
		return criucli.Exit(stderr, name, err)
	}
	verb.OutliveReaders()
	ctx, stop := verb.UntilEnded()
	defer stop()
	lock, err := lockDir(ctx, o) // before the log, which may be that of who serves
	if err != nil {
		return criucli.Exit(stderr, name, err)
	}
	defer lock.Release()
	log, err := o.OpenLog(stderr)
	if err != nil {
		return criucli.Exit(stderr, name, err)
	}
	defer log.Close()
	logger := o.NewLogger(log, "lazy-pages")
	st, err := serve(ctx, o, lock, logger)
	if o.Stats {
		printStats(stdout, st)
	}
	if err != nil {
		logger.Error("serve the tasks", "error", err)
		if o.LogFile != "" && o.LogFile != "-" {
			return criucli.Exit(stderr, name, err)
		}
		return 1
	}
	return 0
}

func printStats(w io.Writer, st pager.Stats) {
	fmt.Fprintf(w, "Displaying lazy-pages stats:\nfaults:            %d\nfault p50:         %v\nfault p99:         %v\n"+
		"installed pages:   %d\nzero pages:        %d\nlost pages:        %d\nresident after:    %v\n",
		st.Faults, st.FaultP50, st.FaultP99, st.InstalledBytes>>12, st.ZeroBytes>>12, st.PoisonedBytes>>12, st.Resident)
}

// lockDir has the work directory be this daemon's.
func lockDir(ctx context.Context, o *criucli.Options) (*lazypages.Lock, error) {
	lock, err := lazypages.LockDir(ctx, o.Dir())
	if errors.Is(err, lazypages.ErrServed) {
		hint := "another restore needs another --work-dir"
		if _, resume := o.Own["resume"]; resume {
			hint = "--resume takes over once it has ended"
		}
		return nil, &criucli.UsageError{Problem: err.Error(), Hint: hint}
	}
	return lock, err
}

// serve does what the command line says.
func serve(ctx context.Context, o *criucli.Options, lock *lazypages.Lock, log *slog.Logger) (pager.Stats, error) {
	opts := lazypages.Options{Images: o.ImagesDir, WorkDir: o.WorkDir, Lock: lock, Ready: o.Ready, Logger: log}
	switch b, said := o.Own["background"]; {
	case !said || b == "full":
	case b == "none":
		opts.Background = pager.None
	default:
		return pager.Stats{}, &criucli.UsageError{Problem: "--background " + b, Hint: "it is full or none"}
	}
	closePages, err := openPages(ctx, o, &opts, log)
	if err != nil {
		return pager.Stats{}, err
	}
	defer closePages()
	verb.ShareNoHeap()
	if _, resume := o.Own["resume"]; resume {
		return lazypages.Resume(ctx, opts)
	}
	st, err := lazypages.Serve(ctx, opts)
	if errors.Is(err, lazypages.ErrLeft) {
		err = &criucli.UsageError{Problem: err.Error(), Hint: "--resume serves them; another restore needs another --work-dir"}
	}
	return st, err
}
