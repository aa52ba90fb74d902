package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/pageserver/client"
)

// listing is what inspect --json prints of servers.
type listing struct {
	Servers []serverListing `json:"servers"`
}

type serverListing struct {
	Server string        `json:"server"`
	Images []listedImage `json:"images"`
}

type listedImage struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"` // of all its objects
	Digest string `json:"digest"`
}

// listImages says what images servers have.
func (c *command) listImages(addr client.Address, r *remote) error {
	if err := r.check(); err != nil {
		return err
	}
	var found listing
	for _, s := range addr.Servers {
		images, err := client.List(context.Background(), s, client.Options{Dial: r.dial, Timeout: listTimeout})
		if err != nil {
			return fmt.Errorf("%w: %w", lazyrestore.ErrSourceLost, err)
		}
		one := serverListing{Server: s.String(), Images: []listedImage{}}
		for _, im := range images {
			one.Images = append(one.Images, listedImage{im.Name, im.Size, im.Digest})
		}
		found.Servers = append(found.Servers, one)
	}
	if c.JSON {
		c.PrintJSON(found)
		return nil
	}
	var b strings.Builder
	for _, s := range found.Servers {
		fmt.Fprintf(&b, "%s has %s\n", s.Server, plural(len(s.Images), "image"))
		for _, im := range s.Images {
			fmt.Fprintf(&b, "  %-30s %9s  %s\n", im.Name, sizeText(uint64(im.Bytes)), im.Digest)
		}
	}
	c.Print(b.String())
	return nil
}
