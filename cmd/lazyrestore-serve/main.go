// Command lazyrestore-serve is the verb serve of lazyrestore, which executes it
// from beside itself: it serves images over the network.
package main

import (
	"os"

	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
)

func main() { os.Exit(verb.External(serve, os.Args[1:], os.Stdout, os.Stderr)) }
