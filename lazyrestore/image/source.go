package image

import (
	"context"
	"io"
	"os"
)

// A Lane says how urgent a read is.
type Lane uint8

// The lanes. A source that queues serves demand before background.
const (
	Demand     Lane = iota // a thread of the restored process waits for it
	Background             // nobody waits for it yet
)

// String is the lane's name.
func (l Lane) String() string {
	if l == Demand {
		return "demand"
	}
	return "background"
}

// A Source reads the objects of one image. Its methods may be called
// concurrently, Close only once and when no other call is under way.
type Source interface {
	// ReadRange fills p with the bytes of object from off on, or fails:
	// io.ErrUnexpectedEOF where the object ends before p is full,
	// fs.ErrNotExist where there is no such object, the context's error where
	// ctx is done first.
	ReadRange(ctx context.Context, object string, p []byte, off int64, lane Lane) error
	// Size is the length of object in bytes; fs.ErrNotExist where there is none.
	Size(ctx context.Context, object string) (int64, error)
	Close() error
}

// A Rejecter is a Source that wants to be told when bytes it gave turn out to
// be damaged, so that a cache drops them or another server is tried. Reject
// reports whether another read may give other ones: a Source that has more than one
// place to read from asks each, and where all have given damaged ones its reads fail
// for a while, with an error that is not ErrDamaged.
type Rejecter interface {
	Reject(object string, off, n int64, err error) (again bool)
}

// A Digester is a Source that knows the digest of the image before its manifest is
// read, and "" if not: a manifest with another one was damaged on its way.
type Digester interface {
	Digest() string
}

// An Immediate is a Source that can say at once whether it has some bytes in
// memory. ReadNow fills p and reports true, or reports false where that would
// mean to wait; an error is one of ReadRange's.
type Immediate interface {
	ReadNow(object string, p []byte, off int64) (ok bool, err error)
}

// A Prompt is a Source that can often give bytes sooner than a thread is woken
// that waits for them: within some hundred microseconds. ReadSoon fills p and
// reports true, or reports false where it takes longer, and then p is not
// written to any more. The caller's thread is busy meanwhile.
type Prompt interface {
	ReadSoon(object string, p []byte, off int64) (ok bool, err error)
}

// A Filer is a Source whose objects are local files. The caller closes the
// file, which is open for reading.
type Filer interface {
	File(object string) (*os.File, error)
}

// A Sink is where a Writer puts an image's objects. Each name is created once.
// A Sink that can make several objects at once is called from one goroutine;
// the objects are written from several.
type Sink interface {
	Create(object string) (io.WriteCloser, error)
}
