package pagexfer

import (
	"encoding/binary"
	"fmt"

	"github.com/lazyrestore/lazyrestore/lazyrestore/page"
)

// Detect tells the dialect of a client by the first 24 bytes that it says.
//
// A client begins with OPEN2 or PARENT, whose pages and address are zero, or
// with GET. At offset 8 the one dialect has the address and the other the
// number of pages, at offset 16 the one has the id and the other the address:
//
//	offset        4          8             16         24
//	4.1     cmd   pages u32  addr u64      id u64
//	4.2     cmd   padding    pages u64     addr u64   id u64
//
// The padding holds whatever lay on the client's stack, and is not looked at.
// A first CLOSE is all zero in both, and the same answer ends both: V41.
//
// The error, for anything else, wraps ErrProtocol.
func Detect(first []byte) (Dialect, error) {
	word := binary.LittleEndian.Uint32(first)
	at8, at16 := binary.LittleEndian.Uint64(first[8:]), binary.LittleEndian.Uint64(first[16:])
	switch Command(word) {
	case Open, Open2, Parent:
		switch {
		case at8 == 0 && at16 != 0:
			return V41, nil
		case at8 == 0:
			return V42, nil
		}
	case Get:
		// No number of pages that a client asks for is as large as the lowest
		// address, and no pid lies where an address does.
		switch {
		case at8 != 0 && page.Addr(at8).Aligned() && at16 != 0 && at16 <= maxPID:
			return V41, nil
		case at8 != 0 && at8 < page.Size && at16 != 0 && page.Addr(at16).Aligned():
			return V42, nil
		}
	case Close, ForceClose:
		return V41, nil
	case Command(tlsHello):
		return 0, fmt.Errorf("%w: the client speaks TLS, and this server has not been told to", ErrProtocol)
	default:
		return 0, fmt.Errorf("%w: %s cannot come first", ErrProtocol, Command(word))
	}
	return 0, fmt.Errorf("%w: first %s in neither dialect: % x", ErrProtocol, Command(word), first[:minHeader])
}

// tlsHello is how a TLS record with a handshake begins: its type and the
// first half of its version.
const tlsHello = 0x0316
