// Package wire is the protocol between a page server and its clients: messages
// to bytes and back. PROTOCOL.md, beside this file, describes the protocol
// itself and what each side has to do. The package is pure: it makes no system
// calls, and knows neither connections nor images.
//
// Every message has a header of 16 bytes and a body. Append functions append a
// whole message, header and checksum included; a Decoder reads messages from a
// stream, checks them, and Parse functions take their bodies apart. The bytes
// of images, the payload of DATA, are not copied: a sender puts them behind
// what AppendData gives, a receiver reads them from its Decoder to where they
// belong.
//
// What a peer sends is not trusted: no length is believed before it has been
// held against its limit, and every error of parsing is an ErrMalformed.
package wire
