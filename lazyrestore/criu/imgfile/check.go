package imgfile

import (
	"errors"
	"fmt"
	"io"
	"path"

	"google.golang.org/protobuf/encoding/protowire"
)

// checked are the files that hold records and nothing else, and are needed by every
// restore. There is one record in those that say so; 0 stands for a number of which only
// CRIU knows.
var checked = []struct {
	pattern string
	magic   Magic
	one     bool
}{
	{"inventory.img", MagicInventory, true},
	{"pstree.img", MagicPstree, false},
	{"core-*.img", MagicCore, true},
	{"mm-*.img", MagicMM, true},
	{"ids-*.img", 0, true},
	{"fs-*.img", 0, true},
	{"fdinfo-*.img", 0, false},
	{"files.img", 0, false},
}

// Check reports a file of the set that was cut, or is of another kind than its name
// says: the error wraps ErrDamaged. Records have no sums, so that not every change of a
// byte is found. Files of which nothing is known here pass.
func (d *Dir) Check(name string) error {
	for _, k := range checked {
		if match, err := path.Match(k.pattern, name); err != nil || !match {
			continue
		}
		r, c, err := d.open(name, k.magic)
		if err != nil {
			return err
		}
		defer c.Close()
		n, err := r.walk()
		switch {
		case err != nil:
			return err
		case n == 0 && name != "files.img" && k.pattern != "fdinfo-*.img":
			return r.damaged(io.ErrUnexpectedEOF)
		case n > 1 && k.one:
			return r.damaged(fmt.Errorf("%d records where there is one", n))
		}
		if name == "inventory.img" {
			_, err = d.Inventory()
		}
		return err
	}
	return nil
}

// walk reads all records, each of which has to be a message, and counts them.
func (r *Reader) walk() (n int, err error) {
	for ; ; n++ {
		at := r.off
		b, err := r.Next()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		for err == nil && len(b) > 0 {
			_, _, size := protowire.ConsumeField(b)
			if size < 0 {
				return n, &DamagedError{File: r.name, Offset: at, Err: protowire.ParseError(size)}
			}
			b = b[size:]
		}
		if err != nil {
			return n, err
		}
	}
}
