package criu_test

import (
	"context"
	"errors"
	"log"
	"net"

	"github.com/lazyrestore/lazyrestore/lazyrestore/chunk"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/convert"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/imgfile"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/lazypages"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pageserver"
	"github.com/lazyrestore/lazyrestore/lazyrestore/criu/pageset"
	"github.com/lazyrestore/lazyrestore/lazyrestore/image"
	"github.com/lazyrestore/lazyrestore/lazyrestore/pager"
	"github.com/lazyrestore/lazyrestore/lazyrestore/store"
)

// The place of criu lazy-pages -D dump, with what makes it replaceable: who
// finds that a daemon was killed goes on where it was.
func Example_lazyPages() {
	opts := lazypages.Options{
		Images: "dump",
		Ready:  func() error { log.Print("criu restore -D dump --lazy-pages may come"); return nil },
	}
	stats, err := lazypages.Resume(context.Background(), opts)
	if errors.Is(err, pager.ErrNoPredecessor) {
		stats, err = lazypages.Serve(context.Background(), opts)
	}
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("all is resident after %v and %d faults", stats.Resident, stats.Faults)
}

// A dump becomes an image of compressed chunks, from which criu restore
// --lazy-pages starts.
func Example_import() {
	ctx := context.Background()
	set, err := imgfile.Open("dump")
	if err != nil {
		log.Fatal(err)
	}
	staging, err := store.CreateDir("image")
	if err != nil {
		log.Fatal(err)
	}
	w, err := image.NewWriter(staging, image.WriterOptions{Spec: chunk.Spec{Codec: chunk.LZ4}})
	if err != nil {
		log.Fatal(errors.Join(err, staging.Abort()))
	}
	manifest, err := convert.Import(ctx, set, w)
	if err == nil {
		_, err = w.Finish(ctx, manifest)
	}
	if err != nil {
		w.Abort()
		log.Fatal(errors.Join(err, staging.Abort()))
	}
	if err := staging.Commit(); err != nil {
		log.Fatal(err)
	}
}

// The place of criu page-server --lazy-pages -D dump, for any number of clients.
func Example_pageServer() {
	ctx := context.Background()
	dir, err := imgfile.Open("dump")
	if err != nil {
		log.Fatal(err)
	}
	set, err := pageset.OfFiles(dir)
	if err != nil {
		log.Fatal(err)
	}
	defer set.Close()
	l, err := net.Listen("tcp", "127.0.0.1:7000")
	if err != nil {
		log.Fatal(err)
	}
	if err := pageserver.Serve(ctx, l, set, pageserver.Options{}); err != nil {
		log.Fatal(err)
	}
}
